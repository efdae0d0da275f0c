//! The interface of an objective, and its result for one sequence.

use std::fmt::Debug;

use crate::sequence::expect_length;
use crate::{Clip, Denominator, ObjectiveError, Sequence};

/// A loss on the log-probabilities of sampled tokens, with its gradient in closed form.
///
/// A caller counts the [`StepSize`](crate::StepSize) of the whole optimiser step first, evaluates
/// sequence by sequence in any order and in micro-batches of any size, divides every loss and every
/// gradient by [`denominator().value(&step_size)`](Denominator::value), and back-propagates Σ_t
/// sg\[gradient_t\]·log π_t through the model. [`evaluate_step`](crate::evaluate_step) does this
/// arithmetic for sequences that are all in memory.
///
/// An implementation is a pure function of the sequence: it keeps no state between calls, reads
/// nothing else, and gives the same answer on any thread. It must not assume that sequences of one
/// group come together. Dividing by the size of a micro-batch is a mistake: the loss then depends
/// on how the step was cut. Count the step before its first micro-batch instead.
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
///
/// A custom objective: the ratio times the advantage, without a clip.
/// `turnwise_testkit::objectives` tests it like the objectives of this crate.
///
/// ```
/// use turnwise_objective::{
///     Denominator, MAX_LOG_RATIO, Objective, ObjectiveError, Sequence, SequenceLoss,
///     evaluate_tokens,
/// };
///
/// #[derive(Debug)]
/// struct Unclipped;
///
/// impl Objective for Unclipped {
///     fn name(&self) -> &'static str {
///         "unclipped"
///     }
///
///     fn denominator(&self) -> Denominator {
///         Denominator::Tokens
///     }
///
///     fn evaluate(
///         &self,
///         sequence: &Sequence<'_>,
///         gradient: &mut [f64],
///     ) -> Result<SequenceLoss, ObjectiveError> {
///         evaluate_tokens(sequence, gradient, |gradient| {
///             let mut evaluated = SequenceLoss::default();
///             for (token, slot) in gradient.iter_mut().enumerate() {
///                 let ratio = sequence.log_ratio(token)?.min(MAX_LOG_RATIO).exp();
///                 *slot = -ratio * sequence.advantage(token)?;
///                 evaluated.loss += *slot; // ∂(r A)/∂log π_t is r A too
///             }
///             Ok(evaluated)
///         })
///     }
/// }
/// ```
pub trait Objective: Send + Sync + Debug {
    /// Returns the name used in settings and reports, such as `gspo_token`.
    fn name(&self) -> &'static str;

    /// Returns the denominator of the sum over the sequences of a whole optimiser step.
    fn denominator(&self) -> Denominator;

    /// Returns the weight of one token of a sequence of `n_tokens` in this objective's sum over
    /// tokens, before the division by the denominator: w_i/n_i. Terms that are added to the
    /// objective ([`WithKl`](crate::WithKl)) are aggregated with it.
    ///
    /// The default is 1/n_i if the denominator counts sequences, and 1 otherwise.
    fn token_weight(&self, n_tokens: usize) -> f64 {
        match self.denominator() {
            Denominator::Sequences => 1.0 / n_tokens as f64,
            Denominator::Tokens | Denominator::Constant(_) => 1.0,
        }
    }

    /// Returns whether [`Objective::evaluate`] needs [`Sequence::with_reference`].
    fn needs_reference(&self) -> bool {
        false
    }

    /// Returns whether [`Objective::evaluate`] needs [`Sequence::with_turns`].
    fn needs_turns(&self) -> bool {
        false
    }

    /// Returns whether the objective rejects advantages that differ inside a sequence.
    fn needs_uniform_advantages(&self) -> bool {
        false
    }

    /// Replaces the clip range, and returns whether the objective has one that bounds the ratio of a whole sequence. A
    /// dual bound stays.
    fn set_clip(&mut self, clip: Clip) -> bool {
        let _ = clip;
        false
    }

    /// Returns the loss of one sequence before the division, and writes ∂loss/∂log π_t of each of
    /// its tokens to `gradient`.
    ///
    /// An empty sequence has loss 0; none of its numbers is read.
    ///
    /// # Errors
    ///
    /// [`ObjectiveError::LengthMismatch`] unless `gradient` has one entry per token;
    /// [`ObjectiveError::NonFinite`] for a number that is NaN or infinite, except for log π_θ = −∞,
    /// which is a ratio of 0; [`ObjectiveError::MissingColumn`]; [`ObjectiveError::LossOverflow`].
    /// After an error the content of `gradient` is unspecified.
    fn evaluate(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError>;

    /// Like [`Objective::evaluate`], but multiplies each entry of `gradient` by `scale`: the
    /// reciprocal of the denominator, for example. The loss is not scaled.
    ///
    /// An implementation that scales an entry before it is written saves a pass over memory. Every
    /// entry must have the bits of the default implementation, which scales after
    /// [`Objective::evaluate`].
    ///
    /// # Errors
    ///
    /// Those of [`Objective::evaluate`].
    ///
    /// ```
    /// use turnwise_objective::{Advantages, Clip, Gspo, LengthWeight, Objective, Sequence};
    ///
    /// let gspo = Gspo { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Mean };
    /// let sequence = Sequence::new(&[-0.5; 2], &[-0.5; 2], Advantages::Uniform(1.0))?;
    /// let mut gradient = [0.0; 2];
    /// assert_eq!(gspo.evaluate_scaled(&sequence, &mut gradient, 0.25)?.loss, -1.0);
    /// assert_eq!(gradient, [-0.125; 2]);
    /// # Ok::<(), turnwise_objective::ObjectiveError>(())
    /// ```
    fn evaluate_scaled(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
        scale: f64,
    ) -> Result<SequenceLoss, ObjectiveError> {
        let evaluated = self.evaluate(sequence, gradient)?;
        for slot in gradient {
            *slot *= scale;
        }
        Ok(evaluated)
    }
}

#[deny(clippy::missing_trait_methods)]
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

    fn set_clip(&mut self, clip: Clip) -> bool {
        (**self).set_clip(clip)
    }

    fn evaluate(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError> {
        (**self).evaluate(sequence, gradient)
    }

    fn evaluate_scaled(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
        scale: f64,
    ) -> Result<SequenceLoss, ObjectiveError> {
        (**self).evaluate_scaled(sequence, gradient, scale)
    }
}

/// Runs the steps that all objectives share around the arithmetic of one: checks the length of the
/// gradient, returns 0 for an empty sequence, and returns an error for a loss that is not finite.
///
/// `arithmetic` gets the gradient of at least one token, and writes every entry. [`Objective`] has
/// an example.
///
/// # Errors
///
/// [`ObjectiveError::LengthMismatch`] unless `gradient` has one entry per token; the errors of
/// `arithmetic`; [`ObjectiveError::NonFinite`] or [`ObjectiveError::LossOverflow`] for its loss.
pub fn evaluate_tokens(
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

/// The loss of one sequence before the division by the step's denominator, and its statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SequenceLoss {
    /// The numerator, to be minimised.
    pub loss: f64,
    /// The input of [`Metrics`](crate::Metrics).
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
    /// Tokens with A_t ≠ 0 whose detached weight was clipped at a bound, while the gradient still
    /// flows through log π_θ (CISPO).
    pub n_truncated: usize,
    /// Tokens with a gradient in which the ratio was clamped at
    /// e^[`MAX_LOG_RATIO`](crate::MAX_LOG_RATIO).
    pub n_capped: usize,
    /// log s_i, the mean log ratio, before any clipping; −∞ if the policy has made a token
    /// impossible.
    pub log_ratio: f64,
    /// Σ_t (r_t − 1 − log r_t) with r_t = π_θ/π_b, an estimate of KL(π_b ‖ π_θ) times n_i; log r_t
    /// clamped at ±512.
    pub k3_sum: f64,
    /// J_seq(mean A) − J_token = (m₋ − m₊)·min(mean A⁺, mean A⁻) ≥ 0, by which GSPO with the mean
    /// advantage would exceed GSPO-token; positive iff the sequence ratio is out of range and the
    /// advantages have both signs. 0 for token ratios.
    pub gap: f64,
    /// Σ_t of the estimate of KL(π_θ ‖ π_ref) in nats; 0 without a KL term.
    pub kl_sum: f64,
}

impl SequenceLoss {
    /// Returns the loss, or an error if it is not finite.
    fn checked(self, sequence: &Sequence<'_>) -> Result<Self, ObjectiveError> {
        if self.loss.is_finite() {
            return Ok(self);
        }
        sequence.expect_finite_advantages()?;
        Err(ObjectiveError::LossOverflow { loss: self.loss })
    }
}
