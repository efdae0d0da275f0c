//! The interface of an objective, and what it says about one sequence.

use std::fmt::Debug;

use crate::sequence::expect_length;
use crate::{Denominator, ObjectiveError, Sequence};

/// A loss on the log-probabilities of sampled tokens, with its gradient in closed form.
///
/// A caller learns the [`StepSize`](crate::StepSize) of the whole optimiser step first, evaluates
/// sequence by sequence in any order and in micro-batches of any size, divides every loss and every
/// gradient by [`denominator().value(&step_size)`](Denominator::value), and back-propagates Σ_t
/// sg\[gradient_t\]·log π_t through the model. [`evaluate_step`](crate::evaluate_step) does the
/// arithmetic of that for sequences that are all at hand.
///
/// An implementation is a pure function of the sequence: it keeps nothing between calls, reads
/// nothing else, and gives the same answer from any thread. It may not assume that sequences of one
/// group come together. A wrong use is to divide by the size of a micro-batch: the loss then
/// depends on how the step was cut. The repair is to count the step before its first micro-batch.
///
/// ```
/// use turnwise_objective::{Advantages, Clip, GspoToken, LengthWeight, Objective, Sequence};
///
/// let objective = GspoToken { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Mean };
/// // Two turns of two tokens: the first was better than expected, the second worse.
/// let credit = [1.0, 1.0, -1.0, -1.0];
/// let logprobs = [-0.5, -1.5, -0.25, -2.0];
/// let sequence = Sequence::new(&logprobs, &logprobs, Advantages::PerToken(&credit))?;
/// let mut gradient = [0.0; 4];
/// let evaluated = objective.evaluate(&sequence, &mut gradient)?;
/// assert_eq!(evaluated.loss, 0.0);
/// assert_eq!(gradient, [-0.25, -0.25, 0.25, 0.25]);
/// # Ok::<(), turnwise_objective::ObjectiveError>(())
/// ```
pub trait Objective: Send + Sync + Debug {
    /// The name used in settings and reports, such as `gspo_token`.
    fn name(&self) -> &'static str;

    /// What the sum over the sequences of a whole optimiser step is divided by.
    fn denominator(&self) -> Denominator;

    /// What one token of a sequence of `n_tokens` weighs in this objective's sum over tokens, before
    /// the division by the denominator: w_i/n_i. A term that is added to the objective
    /// ([`WithKl`](crate::WithKl)) is aggregated by it.
    ///
    /// By default 1/n_i where the denominator counts sequences, and 1 otherwise.
    fn token_weight(&self, n_tokens: usize) -> f64 {
        match self.denominator() {
            Denominator::Sequences => 1.0 / n_tokens as f64,
            Denominator::Tokens | Denominator::Constant(_) => 1.0,
        }
    }

    /// Whether [`Objective::evaluate`] needs [`Sequence::with_reference`].
    fn needs_reference(&self) -> bool {
        false
    }

    /// Whether [`Objective::evaluate`] needs [`Sequence::with_turns`].
    fn needs_turns(&self) -> bool {
        false
    }

    /// Whether it refuses advantages that differ inside a sequence.
    fn needs_uniform_advantages(&self) -> bool {
        false
    }

    /// The loss of one sequence before the division, and ∂loss/∂log π_t of each of its tokens,
    /// written over `gradient`.
    ///
    /// An empty sequence has loss 0; none of its numbers is read.
    ///
    /// # Errors
    ///
    /// [`ObjectiveError::LengthMismatch`] unless `gradient` has one entry per token;
    /// [`ObjectiveError::NonFinite`] for a number that is NaN or infinite, except for log π_θ = −∞,
    /// a ratio of 0; [`ObjectiveError::MissingColumn`]; [`ObjectiveError::LossOverflow`]. After an error the content of `gradient` is
    /// unspecified.
    fn evaluate(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError>;
}

impl<O: Objective + ?Sized> Objective for Box<O> {
    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn denominator(&self) -> Denominator {
        (**self).denominator()
    }

    fn token_weight(&self, n_tokens: usize) -> f64 {
        (**self).token_weight(n_tokens)
    }

    fn needs_reference(&self) -> bool {
        (**self).needs_reference()
    }

    fn needs_turns(&self) -> bool {
        (**self).needs_turns()
    }

    fn needs_uniform_advantages(&self) -> bool {
        (**self).needs_uniform_advantages()
    }

    fn evaluate(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError> {
        (**self).evaluate(sequence, gradient)
    }
}

/// What every objective does around its arithmetic: lengths are checked, an empty sequence is 0,
/// and a loss that is no number is an error.
pub(crate) fn evaluate_tokens(
    sequence: &Sequence<'_>,
    gradient: &mut [f64],
    arithmetic: impl FnOnce(&mut [f64]) -> Result<SequenceLoss, ObjectiveError>,
) -> Result<SequenceLoss, ObjectiveError> {
    expect_length("gradient", sequence.len(), gradient.len())?;
    if sequence.is_empty() {
        return Ok(SequenceLoss::default());
    }
    arithmetic(gradient)?.checked(sequence)
}

/// The loss of one sequence before the division by the step's denominator, and what there is to
/// report about it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SequenceLoss {
    /// The numerator, to be minimised.
    pub loss: f64,
    /// What [`Metrics`](crate::Metrics) are made of.
    pub stats: SequenceStats,
}

/// Counts and sums of one sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SequenceStats {
    /// n_i; 0 for an empty sequence, whose other entries are then 0.
    pub n_tokens: usize,
    /// Tokens with A_t ≠ 0, the ones that can have a gradient.
    pub n_with_advantage: usize,
    /// Tokens whose gradient clipping removed because a ratio is below 1 − ε_l (their advantage is
    /// negative).
    pub n_clipped_low: usize,
    /// Tokens whose gradient clipping removed because a ratio is above 1 + ε_h (their advantage is
    /// positive).
    pub n_clipped_high: usize,
    /// Tokens whose gradient the dual clip removed (their advantage is negative).
    pub n_clipped_dual: usize,
    /// Tokens with A_t ≠ 0 whose detached weight was cut at a bound, with the gradient going on
    /// through log π_θ (CISPO).
    pub n_truncated: usize,
    /// Tokens with a gradient in which the ratio was cut at
    /// e^[`MAX_LOG_RATIO`](crate::MAX_LOG_RATIO).
    pub n_capped: usize,
    /// log s_i, the mean log ratio, before any cut; −∞ if the policy has made a token impossible.
    pub log_ratio: f64,
    /// Σ_t (r_t − 1 − log r_t) with r_t = π_θ/π_b, an estimate of KL(π_b ‖ π_θ) times n_i; log r_t
    /// cut at ±512.
    pub k3_sum: f64,
    /// J_seq(mean A) − J_token = (m₋ − m₊)·min(mean A⁺, mean A⁻) ≥ 0, by which GSPO with the mean
    /// advantage would exceed GSPO-token; positive iff the sequence ratio is out of range and the
    /// advantages have both signs. 0 for token ratios.
    pub gap: f64,
    /// Σ_t of the estimate of KL(π_θ ‖ π_ref) in nats; 0 without a KL term.
    pub kl_sum: f64,
}

impl SequenceLoss {
    /// The loss, unless it is not a number one can train on.
    fn checked(self, sequence: &Sequence<'_>) -> Result<Self, ObjectiveError> {
        if self.loss.is_finite() {
            return Ok(self);
        }
        sequence.expect_finite_advantages()?;
        Err(ObjectiveError::LossOverflow { loss: self.loss })
    }
}
