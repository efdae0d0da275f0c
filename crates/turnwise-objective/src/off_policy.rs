//! An objective that masks mistakes which the policy no longer makes.

use crate::objective::evaluate_tokens;
use crate::{
    Advantages, Clip, Denominator, Objective, ObjectiveError, Sequence, SequenceLoss,
    off_policy_mask, weighted,
};

/// An objective whose advantages are first multiplied by [`off_policy_mask`] (DeepSeek-V3.2, arXiv
/// 2512.02556, eq. 9).
///
/// A masked token has no gradient and still counts in n_i and s_i, like an advantage of 0.
///
/// ```
/// use turnwise_objective::{Advantages, Clip, Grpo, Objective, Sequence, WithOffPolicyMask};
///
/// let masked = WithOffPolicyMask::new(Grpo { clip: Clip::PAPER_GRPO }, 0.5)?;
/// // The policy gives these tokens e^-2 of the probability at which they were sampled.
/// let left_behind = Sequence::new(&[-3.0; 2], &[-1.0; 2], Advantages::PerToken(&[1.0, -1.0]))?;
/// let mut gradient = [0.0; 2];
/// masked.evaluate(&left_behind, &mut gradient)?;
/// assert!(gradient[0] < 0.0);
/// assert_eq!(gradient[1], 0.0);
/// # Ok::<(), turnwise_objective::ObjectiveError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WithOffPolicyMask<O> {
    inner: O,
    max_kl: f64,
}

impl<O: Objective> WithOffPolicyMask<O> {
    /// Creates an objective that evaluates `inner` on all tokens of sequences whose mean log π_b −
    /// log π_θ is at most `max_kl` nats per token, and on the tokens with positive advantages of
    /// the others.
    ///
    /// # Errors
    ///
    /// [`ObjectiveError::InvalidSetting`] unless `max_kl` is finite and at least 0.
    pub fn new(inner: O, max_kl: f64) -> Result<Self, ObjectiveError> {
        if max_kl >= 0.0 && max_kl.is_finite() {
            return Ok(Self { inner, max_kl });
        }
        let range = "a finite number of at least 0";
        Err(ObjectiveError::InvalidSetting { setting: "max_kl", value: max_kl, range })
    }
}

impl<O: Objective> Objective for WithOffPolicyMask<O> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn denominator(&self) -> Denominator {
        self.inner.denominator()
    }

    fn token_weight(&self, n_tokens: usize) -> f64 {
        self.inner.token_weight(n_tokens)
    }

    fn needs_reference(&self) -> bool {
        self.inner.needs_reference()
    }

    fn needs_turns(&self) -> bool {
        self.inner.needs_turns()
    }

    fn needs_uniform_advantages(&self) -> bool {
        self.inner.needs_uniform_advantages()
    }

    fn set_clip(&mut self, clip: Clip) -> bool {
        self.inner.set_clip(clip)
    }

    fn evaluate(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError> {
        self.evaluate_scaled(sequence, gradient, 1.0)
    }

    fn evaluate_scaled(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
        scale: f64,
    ) -> Result<SequenceLoss, ObjectiveError> {
        evaluate_tokens(sequence, gradient, |gradient| {
            let weights = off_policy_mask(sequence, self.max_kl)?;
            if weights.iter().all(|weight| *weight == 1.0) {
                return self.inner.evaluate_scaled(sequence, gradient, scale);
            }
            let masked = weighted(sequence.advantages(), &weights)?;
            let masked = sequence.with_advantages(Advantages::PerToken(&masked))?;
            self.inner.evaluate_scaled(&masked, gradient, scale)
        })
    }
}
