//! Objectives: losses on log-probabilities with their gradients.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use turnwise_objective::{
    Advantages, Clip, Grpo, Gspo, GspoToken, GspoTurn, KlEstimator, LengthWeight, Metrics,
    Objective, ObjectiveError, Sequence, SequenceStats, StepLoss, WithKl, evaluate_step, presets,
};

use crate::columns::{ColumnNumber, column};

/// The columns of one ratio group, owned, so that Python can go on while they are computed on.
struct OwnedSequence {
    logprobs: Vec<f64>,
    behavior: Vec<f64>,
    /// One advantage for each token, or a single one for all.
    advantages: Vec<f64>,
    is_uniform: bool,
    reference: Option<Vec<f64>>,
    turns: Option<Vec<usize>>,
}

/// The columns of one ratio group as Python passes them: log-probabilities, behaviour log-probabilities, advantages, whether
/// the advantage is one number, reference log-probabilities, tokens of each turn.
type SequenceColumns<'py> = (
    Bound<'py, PyBytes>,
    Bound<'py, PyBytes>,
    Bound<'py, PyBytes>,
    bool,
    Option<Bound<'py, PyBytes>>,
    Option<Vec<usize>>,
);

impl OwnedSequence {
    fn of(
        (logprobs, behavior, advantages, is_uniform, reference, turns): SequenceColumns<'_>,
    ) -> Self {
        let read = |bytes: &Bound<'_, PyBytes>| f64::read(bytes.as_bytes());
        Self {
            logprobs: read(&logprobs),
            behavior: read(&behavior),
            advantages: read(&advantages),
            is_uniform,
            reference: reference.as_ref().map(read),
            turns,
        }
    }

    fn view(&self) -> Result<Sequence<'_>, ObjectiveError> {
        let advantages = match self.advantages.as_slice() {
            [advantage] if self.is_uniform => Advantages::Uniform(*advantage),
            each => Advantages::PerToken(each),
        };
        let mut sequence = Sequence::new(&self.logprobs, &self.behavior, advantages)?;
        if let Some(reference) = &self.reference {
            sequence = sequence.with_reference(reference)?;
        }
        match &self.turns {
            Some(turns) => sequence.with_turns(turns),
            None => Ok(sequence),
        }
    }
}

/// A loss as Python gets it: the loss, the gradients, the statistics of each sequence, and those of the step.
type LossColumns<'py> = (f64, Bound<'py, PyList>, Bound<'py, PyList>, Bound<'py, PyDict>);

/// Evaluates the sequences of one optimiser step. Returns the loss, the gradient of each sequence, the statistics of each, and
/// those of the step.
#[pyfunction]
#[pyo3(signature = (objective, sequences, *, clip_low=None, clip_high=None, dual_clip=None, length_weight=None, kl_beta=0.0, kl_estimator="k3"))]
pub(crate) fn step_loss<'py>(
    py: Python<'py>,
    objective: &str,
    sequences: Vec<SequenceColumns<'py>>,
    clip_low: Option<f64>,
    clip_high: Option<f64>,
    dual_clip: Option<f64>,
    length_weight: Option<&str>,
    kl_beta: f64,
    kl_estimator: &str,
) -> PyResult<LossColumns<'py>> {
    let chosen = Chosen { clip_low, clip_high, dual_clip, length_weight };
    let objective = with_kl(chosen.objective(objective)?, kl_beta, kl_estimator)?;
    let owned: Vec<OwnedSequence> = sequences.into_iter().map(OwnedSequence::of).collect();
    let (step, stats) =
        py.detach(|| evaluated(&*objective, &owned)).map_err(|error| refused(&error))?;
    let gradients = step.gradients.iter().map(|gradient| column(py, gradient));
    let gradients = PyList::new(py, gradients.collect::<Vec<_>>())?;
    let stats: PyResult<Vec<_>> = stats.iter().map(|stats| of_sequence(py, stats)).collect();
    Ok((step.loss, gradients, PyList::new(py, stats?)?, of_step(py, &step.metrics)?))
}

/// Returns the names that `step_loss` knows, each with its source.
#[pyfunction]
pub(crate) fn objective_names() -> Vec<(&'static str, &'static str)> {
    presets().iter().map(|preset| (preset.name, preset.source)).collect()
}

fn evaluated(
    objective: &dyn Objective,
    owned: &[OwnedSequence],
) -> Result<(StepLoss, Vec<SequenceStats>), ObjectiveError> {
    let mut sequences = Vec::with_capacity(owned.len());
    for (index, sequence) in owned.iter().enumerate() {
        sequences.push(
            sequence
                .view()
                .map_err(|source| ObjectiveError::InSequence { index, source: Box::new(source) })?,
        );
    }
    let step = evaluate_step(objective, &sequences)?;
    let mut stats = Vec::with_capacity(sequences.len());
    for sequence in &sequences {
        let mut gradient = vec![0.0; sequence.len()];
        stats.push(objective.evaluate(sequence, &mut gradient)?.stats);
    }
    Ok((step, stats))
}

/// Settings of an objective.
struct Chosen<'a> {
    clip_low: Option<f64>,
    clip_high: Option<f64>,
    dual_clip: Option<f64>,
    length_weight: Option<&'a str>,
}

impl Chosen<'_> {
    /// Makes an objective. Those of the GSPO family and GRPO take settings; every other has its published ones.
    fn objective(&self, name: &str) -> PyResult<Box<dyn Objective>> {
        let length_weight = self.length_weight.map_or(Ok(LengthWeight::Mean), length_weight_of)?;
        let clip = |published: Clip| self.clip(published);
        Ok(match name {
            "gspo" => Box::new(Gspo { clip: clip(Clip::PAPER_GSPO)?, length_weight }),
            "gspo_token" => Box::new(GspoToken { clip: clip(Clip::PAPER_GSPO)?, length_weight }),
            "gspo_turn" => Box::new(GspoTurn { clip: clip(Clip::PAPER_GSPO)?, length_weight }),
            "grpo" if self.length_weight.is_none() => {
                Box::new(Grpo { clip: clip(Clip::PAPER_GRPO)? })
            }
            _ => self.published(name)?,
        })
    }

    fn clip(&self, published: Clip) -> PyResult<Clip> {
        let (low, high) =
            (self.clip_low.unwrap_or(published.low()), self.clip_high.unwrap_or(published.high()));
        let clip = Clip::new(low, high).map_err(|error| refused(&error))?;
        match self.dual_clip {
            Some(bound) => clip.with_dual(bound).map_err(|error| refused(&error)),
            None => Ok(clip),
        }
    }

    fn published(&self, name: &str) -> PyResult<Box<dyn Objective>> {
        let known = presets();
        let Some(preset) = known.iter().find(|preset| preset.name == name) else {
            let names: Vec<&str> = known.iter().map(|preset| preset.name).collect();
            return Err(PyValueError::new_err(format!(
                "no objective is called `{name}`; known are {}",
                names.join(", ")
            )));
        };
        let Self { clip_low, clip_high, dual_clip, length_weight } = self;
        if clip_low.or(*clip_high).or(*dual_clip).is_some() || length_weight.is_some() {
            return Err(PyValueError::new_err(format!(
                "`{name}` has its published settings and takes no others; gspo, gspo_token and gspo_turn take a clip range and a length weight, grpo a clip range"
            )));
        }
        preset.objective().map_err(|error| refused(&error))
    }
}

fn length_weight_of(name: &str) -> PyResult<LengthWeight> {
    Ok(match name {
        "mean" => LengthWeight::Mean,
        "tokens" => LengthWeight::Tokens,
        "sqrt_tokens" => LengthWeight::SqrtTokens,
        _ => {
            let wrong =
                format!("length_weight is {name:?}; known are mean, tokens and sqrt_tokens");
            return Err(PyValueError::new_err(wrong));
        }
    })
}

fn with_kl(
    objective: Box<dyn Objective>,
    beta: f64,
    estimator: &str,
) -> PyResult<Box<dyn Objective>> {
    let estimator = match estimator {
        "k1" => KlEstimator::K1,
        "k2" => KlEstimator::K2,
        "k3" => KlEstimator::K3,
        _ => {
            let wrong = format!("kl_estimator is {estimator:?}; known are k1, k2 and k3");
            return Err(PyValueError::new_err(wrong));
        }
    };
    if beta == 0.0 {
        return Ok(objective);
    }
    Ok(Box::new(WithKl::new(objective, estimator, beta).map_err(|error| refused(&error))?))
}

fn refused(error: &ObjectiveError) -> PyErr {
    PyValueError::new_err(crate::failure::chain(error))
}

fn of_sequence<'py>(py: Python<'py>, stats: &SequenceStats) -> PyResult<Bound<'py, PyDict>> {
    let fields = PyDict::new(py);
    fields.set_item("n_tokens", stats.n_tokens)?;
    fields.set_item("n_with_advantage", stats.n_with_advantage)?;
    fields.set_item("n_clipped_low", stats.n_clipped_low)?;
    fields.set_item("n_clipped_high", stats.n_clipped_high)?;
    fields.set_item("n_clipped_dual", stats.n_clipped_dual)?;
    fields.set_item("n_truncated", stats.n_truncated)?;
    fields.set_item("n_capped", stats.n_capped)?;
    fields.set_item("log_ratio", stats.log_ratio)?;
    fields.set_item("k3_sum", stats.k3_sum)?;
    fields.set_item("gap", stats.gap)?;
    fields.set_item("kl_sum", stats.kl_sum)?;
    Ok(fields)
}

fn of_step<'py>(py: Python<'py>, metrics: &Metrics) -> PyResult<Bound<'py, PyDict>> {
    let fields = PyDict::new(py);
    let (tokens, sequences) =
        (metrics.clip_fraction_by_token(), metrics.clip_fraction_by_sequence());
    fields.set_item("n_sequences", metrics.n_sequences())?;
    fields.set_item("n_tokens", metrics.n_tokens())?;
    fields.set_item("n_empty", metrics.n_empty())?;
    fields.set_item("advantage_fraction", metrics.advantage_fraction())?;
    fields.set_item("log_ratio_mean", metrics.log_ratio_mean())?;
    fields.set_item("log_ratio_std", metrics.log_ratio_std())?;
    fields.set_item("clip_fraction", tokens.total())?;
    fields.set_item("clip_fraction_low", tokens.low)?;
    fields.set_item("clip_fraction_high", tokens.high)?;
    fields.set_item("clip_fraction_by_sequence", sequences.total())?;
    fields.set_item("gap_live_fraction", metrics.gap_live_fraction())?;
    fields.set_item("gap_mean", metrics.gap_mean())?;
    fields.set_item("k3_mean", metrics.k3_mean())?;
    fields.set_item("kl_mean", metrics.kl_mean())?;
    fields.set_item("effective_sample_size", metrics.effective_sample_size())?;
    fields.set_item("n_capped_tokens", metrics.n_capped_tokens())?;
    Ok(fields)
}
