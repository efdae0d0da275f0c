//! The learner: a model that computes log-probabilities and takes their gradients.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyList};
use serde_json::{Map, Value};
use turnwise_candle::{CandleLearner, Decoder, DecoderConfig, LearnerSettings};
use turnwise_training::{Learner, LearnerError, Row, Target, Update};
use turnwise_trajectory::PolicyVersion;

use crate::columns::{ColumnNumber, column};
use crate::failure::{broken, chain};
use crate::interrupt::wait;
use crate::policy::{PythonPolicy, decoder, settings, unfit};

/// A learner in this process. A call takes it out of its place and puts it back, so that a call within a call is refused
/// rather than waiting for itself.
#[pyclass(frozen, module = "turnwise._native", name = "Learner")]
pub(crate) struct PythonLearner {
    learner: Mutex<Option<CandleLearner>>,
    n_weights: usize,
    vocab_size: usize,
}

/// A row as Python passes it: ids, positions of the targets, their temperatures, and the ids that truncation kept for a
/// target, by its index.
type RowColumns<'py> =
    (Bound<'py, PyBytes>, Bound<'py, PyBytes>, Bound<'py, PyBytes>, BTreeMap<usize, Vec<u32>>);

#[pymethods]
impl PythonLearner {
    /// Loads the model of a directory or a GGUF file.
    #[staticmethod]
    fn load(
        py: Python<'_>,
        model: PathBuf,
        base: Option<PathBuf>,
        optimizer: &str,
        learner: &str,
    ) -> PyResult<Self> {
        let decoder = decoder(py, model, base)?;
        Self::of(decoder, optimizer, learner)
    }

    /// Makes a small model with random weights. `sizes` has fields of the model's configuration as JSON.
    #[staticmethod]
    fn random(
        vocab_size: usize,
        seed: u64,
        sizes: &str,
        optimizer: &str,
        learner: &str,
    ) -> PyResult<Self> {
        let small = serde_json::to_value(DecoderConfig::small(vocab_size));
        let mut all = small.map_err(|error| broken(&error))?;
        let sizes: Map<String, Value> = settings(sizes)?;
        if let Value::Object(fields) = &mut all {
            fields.extend(sizes);
        }
        let config: DecoderConfig = settings(&all.to_string())?;
        let decoder = Decoder::random(config, seed).map_err(|error| unfit(&error))?;
        Self::of(decoder, optimizer, learner)
    }

    /// An engine that samples with the published weights.
    fn policy(&self, py: Python<'_>, engine: &str) -> PyResult<PythonPolicy> {
        let engine = settings(engine)?;
        let learner = self.taken()?;
        let policy = py.detach(|| learner.own().policy(engine));
        Ok(PythonPolicy::of(policy.map_err(|error| unfit(&error))?))
    }

    /// The version that was published last.
    #[getter]
    fn version(&self) -> PyResult<u64> {
        Ok(self.taken()?.own().version().0.into())
    }

    /// The number of the model's weights.
    #[getter]
    fn n_weights(&self) -> usize {
        self.n_weights
    }

    /// The size of the model's vocabulary.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Keeps the current weights as the reference policy.
    fn keep_reference(&self, py: Python<'_>) -> PyResult<()> {
        let learner = self.taken()?;
        wait(py, || learner.own().keep_reference())?.map_err(|error| failed(&error))
    }

    /// Refuses a model with a parameter that gets no gradient.
    fn check_gradients(&self, py: Python<'_>) -> PyResult<()> {
        let mut learner = self.taken()?;
        wait(py, || learner.own_mut().check_gradients())?.map_err(|error| failed(&error))
    }

    /// Log-probabilities of the targets under the current weights, or under those of the reference policy.
    fn logprobs<'py>(
        &self,
        py: Python<'py>,
        rows: Vec<RowColumns<'py>>,
        of_reference: bool,
    ) -> PyResult<Bound<'py, PyList>> {
        let (mut learner, rows) = (self.taken()?, rows_of(&rows)?);
        let learner = learner.own_mut();
        let logprobs = wait(py, || async {
            if of_reference {
                learner.reference_logprobs(&rows).await
            } else {
                learner.logprobs(&rows).await
            }
        })?;
        list(py, &logprobs.map_err(|error| failed(&error))?)
    }

    /// Adds a gradient. `gradient` gets the log-probabilities of the rows and returns the derivative of the loss with respect
    /// to each.
    fn accumulate(
        &self,
        py: Python<'_>,
        rows: Vec<RowColumns<'_>>,
        gradient: Py<PyAny>,
    ) -> PyResult<()> {
        let (mut learner, rows) = (self.taken()?, rows_of(&rows)?);
        let mut raised = None;
        let mut answer = |logprobs: &[Vec<f32>]| match ask(&gradient, logprobs) {
            Ok(answer) => Ok(answer),
            Err(error) => {
                raised = Some(error);
                Err("the gradient function raised an exception".into())
            }
        };
        let learner = learner.own_mut();
        let done = wait(py, || learner.accumulate(&rows, &mut answer))?;
        match raised {
            Some(error) => Err(error),
            None => done.map_err(|error| failed(&error)),
        }
    }

    /// Takes an optimiser step. Returns the norm of the gradient, whether the step was applied, and the first parameter whose
    /// gradient was not finite.
    fn step(
        &self,
        py: Python<'_>,
        learning_rate: f64,
        max_grad_norm: f64,
    ) -> PyResult<(f64, bool, Option<String>)> {
        let mut learner = self.taken()?;
        let update = Update { learning_rate, max_grad_norm };
        let updated = wait(py, || learner.own_mut().step(update))?;
        let updated = updated.map_err(|error| failed(&error))?;
        Ok((updated.grad_norm, updated.applied, updated.not_finite))
    }

    /// Publishes the current weights to the policies, and returns their version.
    fn publish(&self, py: Python<'_>) -> PyResult<u64> {
        let mut learner = self.taken()?;
        let version = wait(py, || learner.own_mut().publish())?;
        Ok(version.map_err(|error| failed(&error))?.0.into())
    }

    /// Writes weights and optimiser into a directory, which is made.
    fn save(&self, py: Python<'_>, directory: PathBuf) -> PyResult<()> {
        fs::create_dir_all(&directory).map_err(|error| broken(&error))?;
        let mut learner = self.taken()?;
        wait(py, || learner.own_mut().save(&directory))?.map_err(|error| failed(&error))
    }

    /// Reads what `save` wrote, and publishes it as a version.
    fn restore(&self, py: Python<'_>, directory: PathBuf, version: u32) -> PyResult<()> {
        let mut learner = self.taken()?;
        let version = PolicyVersion(version);
        wait(py, || learner.own_mut().load(&directory, version))?.map_err(|error| failed(&error))
    }
}

impl PythonLearner {
    fn of(decoder: Decoder, optimizer: &str, learner: &str) -> PyResult<Self> {
        let (n_weights, vocab_size) = (decoder.n_parameters(), decoder.config().vocab_size);
        let learner_settings: LearnerSettings = settings(learner)?;
        let learner = CandleLearner::with_settings(decoder, settings(optimizer)?, learner_settings);
        let learner = learner.map_err(|error| unfit(&error))?;
        Ok(Self { learner: Mutex::new(Some(learner)), n_weights, vocab_size })
    }

    fn taken(&self) -> PyResult<Taken<'_>> {
        let own = self.learner.lock().ok().and_then(|mut place| place.take());
        match own {
            Some(own) => Ok(Taken { own: Some(own), place: &self.learner }),
            None => Err(PyRuntimeError::new_err(
                "the learner is in use: by another thread, or by the call whose gradient function calls it",
            )),
        }
    }
}

/// A learner for the time of one call; it goes back to its place.
struct Taken<'a> {
    own: Option<CandleLearner>,
    place: &'a Mutex<Option<CandleLearner>>,
}

impl Taken<'_> {
    fn own(&self) -> &CandleLearner {
        self.own.as_ref().expect("it is there until the end of the call")
    }

    fn own_mut(&mut self) -> &mut CandleLearner {
        self.own.as_mut().expect("it is there until the end of the call")
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Ok(mut place) = self.place.lock() {
            *place = self.own.take();
        }
    }
}

fn rows_of(rows: &[RowColumns<'_>]) -> PyResult<Vec<Row>> {
    let row = |(ids, positions, temperatures, kept): &RowColumns<'_>| {
        let ids = u32::read(ids.as_bytes());
        let positions = u32::read(positions.as_bytes());
        let temperatures = f32::read(temperatures.as_bytes());
        if positions.len() != temperatures.len() {
            let (n, of) = (temperatures.len(), positions.len());
            return Err(PyValueError::new_err(format!("{n} temperatures for {of} targets")));
        }
        let targets = positions.iter().zip(temperatures);
        let targets = targets
            .map(|(position, temperature)| Target { position: *position as usize, temperature });
        Ok(Row { ids, targets: targets.collect(), kept: kept.clone() })
    };
    rows.iter().map(row).collect()
}

/// Asks a gradient function in Python. Both directions are columns of f32.
fn ask(gradient: &Py<PyAny>, logprobs: &[Vec<f32>]) -> PyResult<Vec<Vec<f32>>> {
    Python::attach(|py| {
        let answer = gradient.call1(py, (list(py, logprobs)?,))?;
        let answer: Vec<Bound<'_, PyBytes>> = answer.extract(py)?;
        Ok(answer.iter().map(|column| f32::read(column.as_bytes())).collect())
    })
}

fn list<'py>(py: Python<'py>, columns: &[Vec<f32>]) -> PyResult<Bound<'py, PyList>> {
    let columns: Vec<Bound<'py, PyByteArray>> =
        columns.iter().map(|numbers| column(py, numbers)).collect();
    PyList::new(py, columns)
}

fn failed(error: &LearnerError) -> PyErr {
    match error {
        LearnerError::BadRow { .. } | LearnerError::NoReference | LearnerError::Gradient(_) => {
            PyValueError::new_err(chain(error))
        }
        _ => broken(error),
    }
}
