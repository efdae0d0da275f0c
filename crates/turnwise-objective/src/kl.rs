//! KL to a fixed reference policy, added to any objective.

use crate::log_ratio::{MAX_LOG_RATIO, k3_of_one};
use crate::objective::evaluate_tokens;
use crate::sum::Sum;
use crate::{Clip, Denominator, Objective, ObjectiveError, Sequence, SequenceLoss};

/// An estimate of KL(π_θ ‖ π_ref) from one token that π_θ sampled, in nats.
///
/// With d = log π_θ − log π_ref (Schulman 2020, *Approximating KL divergence*,
/// joschu.net/blog/kl-approx.html):
///
/// ```text
///       value             ∂value/∂log π_θ
/// k1    d                 1                   unbiased, of either sign
/// k2    d²/2              d                   biased, ≥ 0
/// k3    e^−d − 1 + d      1 − e^−d            unbiased, ≥ 0
/// ```
///
/// As *losses* the estimators rank differently, because the derivative of an estimate of KL is not
/// an estimate of its derivative: in expectation over π_θ, that of k1 is 0 (no gradient), that of
/// k2 is ∇KL(π_θ ‖ π_ref), and that of k3 is ∇KL(π_ref ‖ π_θ), the other direction (arXiv
/// 2506.09477).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KlEstimator {
    /// d.
    K1,
    /// d²/2.
    K2,
    /// e^−d − 1 + d, as in GRPO (arXiv 2402.03300, eq. 4).
    K3,
}

impl KlEstimator {
    /// Returns the estimate and its derivative with respect to log π_θ. d is clamped at
    /// ±[`MAX_LOG_RATIO`], so that both are finite.
    ///
    /// ```
    /// use turnwise_objective::KlEstimator;
    ///
    /// assert_eq!(KlEstimator::K1.value_and_derivative(-0.5, -1.5), (1.0, 1.0));
    /// assert_eq!(KlEstimator::K2.value_and_derivative(-0.5, -1.5), (0.5, 1.0));
    /// assert_eq!(KlEstimator::K3.value_and_derivative(-0.5, -0.5), (0.0, 0.0));
    /// ```
    #[must_use]
    pub fn value_and_derivative(self, logprob: f64, reference_logprob: f64) -> (f64, f64) {
        let d = (logprob - reference_logprob).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO);
        match self {
            Self::K1 => (d, 1.0),
            Self::K2 => (d * d / 2.0, d),
            Self::K3 => (k3_of_one(-d), 0.0 - (-d).exp_m1()),
        }
    }
}

/// Any objective plus β times an estimate of KL(π_θ ‖ π_ref).
///
/// ```text
/// loss = loss_inner + β · Σ_i Σ_t weight_i k(t)      over the inner objective's denominator
/// ```
///
/// weight_i is [`Objective::token_weight`], so the KL term is aggregated as the policy term is. It
/// is never multiplied by an advantage, a ratio or a clip: a clipped token keeps its KL gradient.
/// With β = 0 the reference is neither needed nor read.
///
/// ```
/// use turnwise_objective::{
///     Advantages, Grpo, Clip, KlEstimator, Objective, ObjectiveError, Sequence, WithKl,
/// };
///
/// let grpo = Grpo { clip: Clip::PAPER_GRPO };
/// let held = WithKl::new(grpo, KlEstimator::K3, 0.04)?;
/// let sequence = Sequence::new(&[-0.5; 2], &[-0.5; 2], Advantages::Uniform(0.0))?;
/// let mut gradient = [0.0; 2];
/// let refused = held.evaluate(&sequence, &mut gradient);
/// assert_eq!(refused, Err(ObjectiveError::MissingColumn { column: "reference_logprobs" }));
///
/// held.evaluate(&sequence.with_reference(&[-0.5, -1.5])?, &mut gradient)?;
/// assert_eq!(gradient[0], 0.0);
/// assert!(gradient[1] > 0.0); // more probable than under the reference
/// # Ok::<(), ObjectiveError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WithKl<O> {
    inner: O,
    estimator: KlEstimator,
    beta: f64,
}

impl<O: Objective> WithKl<O> {
    /// Creates `inner` plus `beta` times the estimate.
    ///
    /// # Errors
    ///
    /// [`ObjectiveError::InvalidSetting`] unless `beta` is finite and at least 0.
    pub fn new(inner: O, estimator: KlEstimator, beta: f64) -> Result<Self, ObjectiveError> {
        if beta >= 0.0 && beta.is_finite() {
            return Ok(Self { inner, estimator, beta });
        }
        let range = "a finite number of at least 0";
        Err(ObjectiveError::InvalidSetting { setting: "beta", value: beta, range })
    }
}

impl<O: Objective> Objective for WithKl<O> {
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
        self.beta > 0.0 || self.inner.needs_reference()
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
        evaluate_tokens(sequence, gradient, |gradient| {
            let evaluated = self.inner.evaluate(sequence, gradient)?;
            if self.beta == 0.0 {
                return Ok(evaluated);
            }
            self.add_kl(evaluated, sequence, gradient)
        })
    }
}

impl<O: Objective> WithKl<O> {
    fn add_kl(
        &self,
        mut evaluated: SequenceLoss,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError> {
        let reference = sequence
            .reference_logprobs()
            .ok_or(ObjectiveError::MissingColumn { column: "reference_logprobs" })?;
        if let Some(token) = reference.iter().position(|logprob| !logprob.is_finite()) {
            let value = reference[token];
            return Err(ObjectiveError::NonFinite { quantity: "reference logprob", token, value });
        }
        let scale = self.beta * self.token_weight(sequence.len());
        let mut sum = Sum::default();
        let tokens = sequence.logprobs().iter().zip(reference);
        for (slot, (&logprob, &reference_logprob)) in gradient.iter_mut().zip(tokens) {
            let (value, derivative) =
                self.estimator.value_and_derivative(logprob, reference_logprob);
            sum.add(value);
            *slot += scale * derivative;
        }
        evaluated.stats.kl_sum += sum.total();
        evaluated.loss += scale * sum.total();
        Ok(evaluated)
    }
}
