//! The loss of a whole optimiser step.

use crate::sum::Sum;
use crate::{Metrics, Objective, ObjectiveError, Sequence};

/// The size of a whole optimiser step, known before its first micro-batch.
///
/// ```
/// use turnwise_objective::{Denominator, StepSize};
///
/// let step = StepSize::from_lengths([3, 0, 5]);
/// assert_eq!(step, StepSize { sequences: 2, tokens: 8 });
/// assert_eq!(Denominator::Sequences.value(&step), 2.0);
/// assert_eq!(Denominator::Tokens.value(&step), 8.0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepSize {
    /// Sequences with at least one token; empty sequences add 0 and do not count.
    pub sequences: usize,
    /// The tokens of all sequences.
    pub tokens: usize,
}

impl StepSize {
    /// Counts a step whose sequences have these numbers of tokens.
    #[must_use]
    pub fn from_lengths(lengths: impl IntoIterator<Item = usize>) -> Self {
        lengths.into_iter().filter(|&length| length > 0).fold(Self::default(), |step, length| {
            Self { sequences: step.sequences + 1, tokens: step.tokens + length }
        })
    }
}

/// The divisor of the sum over the sequences of a whole optimiser step, never of a micro-batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Denominator {
    /// The number of non-empty sequences.
    Sequences,
    /// The number of tokens.
    Tokens,
    /// A number that does not depend on the step.
    Constant(f64),
}

impl Denominator {
    /// Returns the divisor for a step of this size; 1 for a step without tokens, so that its loss
    /// is 0 and not 0/0.
    #[must_use]
    pub fn value(&self, step: &StepSize) -> f64 {
        match *self {
            Self::Sequences => step.sequences.max(1) as f64,
            Self::Tokens => step.tokens.max(1) as f64,
            Self::Constant(value) => value,
        }
    }
}

/// The loss of a whole step and its gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct StepLoss {
    /// The loss, to be minimised, divided by the step's denominator.
    pub loss: f64,
    /// ∂loss/∂log π_t: one row per sequence, one entry per token.
    pub gradients: Vec<Vec<f64>>,
    /// The statistics of the step.
    pub metrics: Metrics,
}

/// Evaluates all the sequences of one optimiser step and divides by the step's denominator.
///
/// The loss is a compensated sum in the given order: another order moves it by at most a rounding
/// of Σ|loss_i|, and no order moves a gradient.
///
/// # Errors
///
/// [`ObjectiveError::InSequence`] for the first sequence that the objective rejects;
/// [`ObjectiveError::InvalidDenominator`].
///
/// ```
/// use turnwise_objective::{Advantages, Clip, Gspo, LengthWeight, Sequence, evaluate_step};
///
/// let gspo = Gspo { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Mean };
/// let sequences = [
///     Sequence::new(&[-0.5, -0.25], &[-0.5, -0.25], Advantages::Uniform(1.0))?,
///     Sequence::new(&[-2.0], &[-2.0], Advantages::Uniform(-1.0))?,
///     Sequence::new(&[], &[], Advantages::Uniform(-1.0))?,
/// ];
/// let step = evaluate_step(&gspo, &sequences)?;
/// assert_eq!(step.loss, 0.0);
/// assert_eq!(step.gradients, [vec![-0.25, -0.25], vec![0.5], vec![]]);
/// assert_eq!(step.metrics.n_sequences(), 2);
/// # Ok::<(), turnwise_objective::ObjectiveError>(())
/// ```
pub fn evaluate_step(
    objective: &dyn Objective,
    sequences: &[Sequence<'_>],
) -> Result<StepLoss, ObjectiveError> {
    let denominator =
        objective.denominator().value(&StepSize::from_lengths(sequences.iter().map(Sequence::len)));
    if !(denominator > 0.0 && denominator.is_finite()) {
        return Err(ObjectiveError::InvalidDenominator { value: denominator });
    }
    let (mut loss, mut metrics) = (Sum::default(), Metrics::default());
    let mut gradients = Vec::with_capacity(sequences.len());
    for (index, sequence) in sequences.iter().enumerate() {
        let mut gradient = vec![0.0; sequence.len()];
        let evaluated = objective
            .evaluate(sequence, &mut gradient)
            .map_err(|source| ObjectiveError::InSequence { index, source: Box::new(source) })?;
        for coefficient in &mut gradient {
            *coefficient /= denominator;
        }
        loss.add(evaluated.loss / denominator);
        metrics.record(&evaluated);
        gradients.push(gradient);
    }
    Ok(StepLoss { loss: loss.total(), gradients, metrics })
}
