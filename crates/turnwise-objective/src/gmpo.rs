//! Geometric-Mean Policy Optimization.

use crate::gspo::advantage_of;
use crate::log_ratio::{MAX_LOG_RATIO, capped_exp, log_ratios};
use crate::objective::evaluate_tokens;
use crate::sum::sum;
use crate::{Denominator, Objective, ObjectiveError, Sequence, SequenceLoss, SequenceStats};

/// GMPO: the geometric mean of the token ratios, each clipped on one side before the mean (arXiv
/// 2507.20673, eq. 4).
///
/// ```text
/// J   = mean_i A_i g_i
/// g_i = exp( (1/n_i) Σ_t d_t ),   d_t = min(log r_t, h) if A_i > 0, max(log r_t, −l) if A_i < 0
/// ∇J  = mean_i (g_i/n_i) A_i Σ_t a_t ∇log π_θ(y_t),   a_t = [d_t = log r_t]
/// ```
///
/// GMPO combines GSPO's mean with GRPO's clipping: a token out of range loses its gradient, and the
/// others keep theirs. The bounds apply to log r_t. There is one advantage per sequence: advantages
/// that differ are rejected, as in [`Gspo`](crate::Gspo).
///
/// ```
/// use turnwise_objective::{Advantages, Gmpo, Objective, Sequence};
///
/// let sequence = Sequence::new(&[-0.5, -1.0], &[-1.5, -1.0], Advantages::Uniform(1.0))?;
/// let mut gradient = [0.0; 2];
/// Gmpo::PAPER.evaluate(&sequence, &mut gradient)?;
/// assert_eq!(gradient[0], 0.0); // a ratio of e is cut at e^0.4
/// assert!((gradient[1] + f64::exp(0.2) / 2.0).abs() < 1e-15);
/// # Ok::<(), turnwise_objective::ObjectiveError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gmpo {
    log_low: f64,
    log_high: f64,
}

impl Gmpo {
    /// l = h = 0.4, that is e^−0.4 to e^0.4 (arXiv 2507.20673, section 4.1).
    pub const PAPER: Self = Self { log_low: 0.4, log_high: 0.4 };

    /// Creates GMPO with token log ratios clipped to −`log_low` to `log_high`.
    ///
    /// # Errors
    ///
    /// [`ObjectiveError::InvalidSetting`] unless both are finite and at least 0.
    pub fn new(log_low: f64, log_high: f64) -> Result<Self, ObjectiveError> {
        for (setting, value) in [("log_low", log_low), ("log_high", log_high)] {
            if !(value >= 0.0 && value.is_finite()) {
                let range = "a finite number of at least 0";
                return Err(ObjectiveError::InvalidSetting { setting, value, range });
            }
        }
        Ok(Self { log_low, log_high })
    }

    /// Returns l, the size of the lower bound of log r_t.
    #[must_use]
    pub fn log_low(&self) -> f64 {
        self.log_low
    }

    /// Returns h, the upper bound of log r_t.
    #[must_use]
    pub fn log_high(&self) -> f64 {
        self.log_high
    }

    /// Clips log r_t on the side that the advantage's sign selects.
    fn cut(&self, log_ratio: f64, advantage: f64) -> f64 {
        if advantage > 0.0 { log_ratio.min(self.log_high) } else { log_ratio.max(-self.log_low) }
    }
}

impl Objective for Gmpo {
    fn name(&self) -> &'static str {
        "gmpo"
    }

    fn denominator(&self) -> Denominator {
        Denominator::Sequences
    }

    fn needs_uniform_advantages(&self) -> bool {
        true
    }

    fn evaluate(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError> {
        evaluate_tokens(sequence, gradient, |gradient| {
            self.evaluate_advantage(sequence, advantage_of(sequence)?, gradient)
        })
    }
}

impl Gmpo {
    fn evaluate_advantage(
        &self,
        sequence: &Sequence<'_>,
        advantage: f64,
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError> {
        let log_ratios = log_ratios(sequence)?;
        let n = sequence.len();
        let tokens = sequence.logprobs().iter().zip(sequence.behavior_logprobs());
        for (slot, (logprob, behavior_logprob)) in gradient.iter_mut().zip(tokens) {
            *slot = logprob - behavior_logprob;
        }
        let log_mean = self.log_mean(gradient, advantage, log_ratios.mean);
        let coefficient = -advantage * capped_exp(log_mean) / n as f64;
        let mut n_clipped = 0;
        for slot in gradient.iter_mut() {
            let is_clipped = self.cut(*slot, advantage) != *slot;
            n_clipped += usize::from(is_clipped);
            *slot = if is_clipped { 0.0 } else { coefficient };
        }
        let n_if = |holds: bool, n: usize| if holds { n } else { 0 };
        let stats = SequenceStats {
            n_tokens: n,
            n_with_advantage: n_if(advantage != 0.0, n),
            n_clipped_low: n_if(advantage < 0.0, n_clipped),
            n_clipped_high: n_if(advantage > 0.0, n_clipped),
            n_capped: n_if(advantage < 0.0 && log_mean > MAX_LOG_RATIO, n - n_clipped),
            log_ratio: log_ratios.mean,
            k3_sum: log_ratios.k3_sum,
            ..SequenceStats::default()
        };
        Ok(SequenceLoss { loss: -advantage * capped_exp(log_mean), stats })
    }

    /// Returns (1/n_i) Σ_t d_t; −∞ if a token has become impossible and no bound limits it from
    /// below.
    fn log_mean(&self, log_ratios: &[f64], advantage: f64, mean: f64) -> f64 {
        if advantage > 0.0 && mean == f64::NEG_INFINITY {
            return mean;
        }
        let cut = log_ratios.iter().map(|&log_ratio| self.cut(log_ratio, advantage));
        sum(cut) / log_ratios.len() as f64
    }
}
