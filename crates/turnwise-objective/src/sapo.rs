//! Soft Adaptive Policy Optimization.

use turnwise_kernels::lanes::LANES;

use crate::objective::evaluate_tokens;
use crate::token_terms::{Lanes, Term, Terms, sum_terms};
use crate::{Denominator, Objective, ObjectiveError, Sequence, SequenceLoss};

/// SAPO: a smooth gate on the token ratio in place of a clip (arXiv 2511.20347, eq. 5 to 8).
///
/// ```text
/// J     = mean_i (1/n_i) Σ_t f(r_t) A_t
/// f(r)  = σ( τ (r − 1) ) · 4/τ,          τ = τ_pos if A_t > 0, else τ_neg
/// ∇J    = mean_i (1/n_i) Σ_t 4 σ(1−σ) r_t A_t ∇log π_θ(y_t)
/// ```
///
/// On policy the gate's slope is 1, so the gradient is REINFORCE's; away from it the gradient fades
/// instead of stopping, faster for negative advantages. Nothing is clipped. The value at r = 1 is
/// 2/τ · A, not A.
///
/// ```
/// use turnwise_objective::{Advantages, Objective, Sapo, Sequence};
///
/// let sequence = Sequence::new(&[-0.5, -0.5], &[-0.5, -2.0], Advantages::Uniform(1.0))?;
/// let mut gradient = [0.0; 2];
/// Sapo::PAPER.evaluate(&sequence, &mut gradient)?;
/// assert_eq!(gradient[0], -0.5); // on policy
/// assert!(gradient[1] < 0.0 && gradient[1] > -0.5); // 4.5 times as probable, and fading
/// # Ok::<(), turnwise_objective::ObjectiveError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sapo {
    tau_positive: f64,
    tau_negative: f64,
}

impl Sapo {
    /// τ_pos = 1.0, τ_neg = 1.05 (arXiv 2511.20347, section 5).
    pub const PAPER: Self = Self { tau_positive: 1.0, tau_negative: 1.05 };

    /// Creates SAPO with these temperatures of the gates for positive and for negative advantages.
    ///
    /// # Errors
    ///
    /// [`ObjectiveError::InvalidSetting`] unless both are finite and above 0.
    pub fn new(tau_positive: f64, tau_negative: f64) -> Result<Self, ObjectiveError> {
        for (setting, value) in [("tau_positive", tau_positive), ("tau_negative", tau_negative)] {
            if !(value > 0.0 && value.is_finite()) {
                let range = "a finite number above 0";
                return Err(ObjectiveError::InvalidSetting { setting, value, range });
            }
        }
        Ok(Self { tau_positive, tau_negative })
    }

    /// Returns τ for a positive advantage.
    #[must_use]
    pub fn tau_positive(&self) -> f64 {
        self.tau_positive
    }

    /// Returns τ for a negative advantage.
    #[must_use]
    pub fn tau_negative(&self) -> f64 {
        self.tau_negative
    }
}

impl Term for Sapo {
    #[inline(always)]
    fn of(&self, tokens: &Lanes) -> Terms {
        let mut terms = Terms::default();
        for lane in 0..LANES {
            let (ratio, advantage) = (tokens.ratios[lane], tokens.advantages[lane]);
            let tau = if advantage > 0.0 { self.tau_positive } else { self.tau_negative };
            let at = tau * (ratio - 1.0);
            // The exponent is at most 0, so that the exponential cannot overflow.
            let tail = (-at.abs()).exp();
            let gate = if at < 0.0 { tail } else { 1.0 } / (1.0 + tail);
            let slope = tail / ((1.0 + tail) * (1.0 + tail));
            terms.values[lane] = 4.0 / tau * gate * advantage;
            terms.gradient[lane] = 4.0 * slope * ratio * advantage;
        }
        terms
    }
}

impl Objective for Sapo {
    fn name(&self) -> &'static str {
        "sapo"
    }

    fn denominator(&self) -> Denominator {
        Denominator::Sequences
    }

    fn evaluate(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError> {
        evaluate_tokens(sequence, gradient, |gradient| {
            let weight = self.token_weight(sequence.len());
            sum_terms(self, weight, sequence, gradient)
        })
    }
}
