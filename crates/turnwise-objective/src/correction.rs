//! Weights for tokens that were drawn by something other than the policy the trainer takes them
//! for: an inference engine that rounds differently, or weights that are behind.
//!
//! Every function gives one detached weight per token, to be multiplied into the advantages
//! ([`weighted`]). A weight of 0 takes a token's gradient away and nothing else: the token still
//! counts in n_i and in s_i.

use std::ops::Range;

use crate::sequence::expect_length;
use crate::sum::sum;
use crate::{Advantages, ObjectiveError, Sequence};

/// What shares one importance weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CorrectionLevel<'a> {
    /// Each token: r_t. Small variance, and biased, because what came before is not corrected.
    Token,
    /// The sequence, by the product: Π_t r_t. Unbiased, with a variance that grows with length.
    Sequence,
    /// The sequence, by the geometric mean: (Π_t r_t)^(1/n_i).
    GeometricMean,
    /// Each stretch, by its geometric mean; these many tokens each, in order. One stretch per policy
    /// version is the rule of a partial rollout.
    Segments(&'a [usize]),
}

/// What happens to a weight that is too large or too small.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CorrectionRule {
    /// min(r, `max`): truncated importance sampling. 2 is usual at token level (Yao et al. 2025,
    /// *Your efficient RL framework secretly brings you off-policy RL training*).
    Truncate {
        /// The cap.
        max: f64,
    },
    /// r if `low` ≤ r ≤ `high`, else 0: masked importance sampling. 0.5 and 5 at token level in
    /// IcePop (arXiv 2510.18855).
    Mask {
        /// The least weight that is kept.
        low: f64,
        /// The greatest weight that is kept.
        high: f64,
    },
}

impl CorrectionRule {
    /// The weight of a log ratio. The exponential of a product that overflows is ∞, which meets the
    /// cap like any other number.
    fn weight(self, log_ratio: f64) -> f64 {
        let ratio = log_ratio.exp();
        match self {
            Self::Truncate { max } => ratio.min(max),
            Self::Mask { low, high } if (low..=high).contains(&ratio) => ratio,
            Self::Mask { .. } => 0.0,
        }
    }

    fn check(self) -> Result<(), ObjectiveError> {
        let range = "finite, at least 0 and in order";
        let (setting, value, valid) = match self {
            Self::Truncate { max } => ("weight cap", max, max > 0.0 && max.is_finite()),
            Self::Mask { low, high } if low >= 0.0 => {
                ("upper weight bound", high, high >= low && high.is_finite())
            }
            Self::Mask { low, .. } => ("lower weight bound", low, false),
        };
        if valid { Ok(()) } else { Err(ObjectiveError::InvalidSetting { setting, value, range }) }
    }
}

/// One weight per token: π_trainer/π_recorded, at a level, under a rule.
///
/// ```text
/// r_t = π_trainer(y_t) / π_recorded(y_t),  the trainer's before its first step on the batch
/// ```
///
/// Where both log-probabilities are equal the weight is exactly 1.
///
/// # Errors
///
/// [`ObjectiveError::LengthMismatch`]; [`ObjectiveError::InvalidSetting`] for a bound;
/// [`ObjectiveError::NonFinite`] for a number that is not finite, except for a trainer's −∞, a ratio
/// of 0.
///
/// ```
/// use turnwise_objective::{CorrectionLevel, CorrectionRule, correction_weights};
///
/// let (trainer, recorded) = ([-1.0, -1.0], [-2.0, -1.0]);
/// let truncate = CorrectionRule::Truncate { max: 2.0 };
/// let weights = correction_weights(&trainer, &recorded, CorrectionLevel::Token, truncate)?;
/// assert_eq!(weights, [2.0, 1.0]);
/// let mask = CorrectionRule::Mask { low: 0.5, high: 2.0 };
/// let weights = correction_weights(&trainer, &recorded, CorrectionLevel::Sequence, mask)?;
/// assert_eq!(weights, [0.0, 0.0]); // e¹ is above 2
/// # Ok::<(), turnwise_objective::ObjectiveError>(())
/// ```
pub fn correction_weights(
    trainer_logprobs: &[f64],
    recorded_logprobs: &[f64],
    level: CorrectionLevel<'_>,
    rule: CorrectionRule,
) -> Result<Vec<f64>, ObjectiveError> {
    rule.check()?;
    let log_ratios = log_ratios_of(trainer_logprobs, recorded_logprobs)?;
    let n = log_ratios.len();
    let geometric = |range: Range<usize>| {
        let n = range.len();
        vec![rule.weight(total(&log_ratios[range]) / n as f64); n]
    };
    Ok(match level {
        CorrectionLevel::Token => log_ratios.iter().map(|&one| rule.weight(one)).collect(),
        CorrectionLevel::Sequence => vec![rule.weight(total(&log_ratios)); n],
        CorrectionLevel::GeometricMean => geometric(0..n),
        CorrectionLevel::Segments(lengths) => {
            expect_length("segments", n, lengths.iter().sum())?;
            let mut start = 0;
            let mut range_of = |&length: &usize| {
                start += length;
                start - length..start
            };
            lengths.iter().flat_map(|length| geometric(range_of(length))).collect()
        }
    })
}

/// Off-policy sequence masking: weight 0 for the tokens with a negative advantage in a sequence that
/// its policy has left behind, 1 for all others (DeepSeek-V3.2, arXiv 2512.02556, eq. 9).
///
/// ```text
/// w_t = 0 if A_t < 0 and (1/n_i) Σ_t [log π_b(y_t) − log π_θ(y_t)] > max_kl, else 1
/// ```
///
/// A mistake that the policy would no longer make teaches little, and its gradient is not bounded
/// from above.
///
/// # Errors
///
/// [`ObjectiveError::InvalidSetting`] unless `max_kl` is finite and at least 0;
/// [`ObjectiveError::NonFinite`] for a log-probability that is not finite, except for log π_θ = −∞.
///
/// ```
/// use turnwise_objective::{Advantages, Sequence, off_policy_mask};
///
/// let credit = [1.0, -1.0];
/// let sequence = Sequence::new(&[-3.0, -3.0], &[-1.0, -1.0], Advantages::PerToken(&credit))?;
/// assert_eq!(off_policy_mask(&sequence, 0.5)?, [1.0, 0.0]);
/// assert_eq!(off_policy_mask(&sequence, 2.0)?, [1.0, 1.0]);
/// # Ok::<(), turnwise_objective::ObjectiveError>(())
/// ```
pub fn off_policy_mask(sequence: &Sequence<'_>, max_kl: f64) -> Result<Vec<f64>, ObjectiveError> {
    if !(max_kl >= 0.0 && max_kl.is_finite()) {
        let range = "a finite number of at least 0";
        return Err(ObjectiveError::InvalidSetting { setting: "max_kl", value: max_kl, range });
    }
    sequence.expect_finite_advantages()?;
    let log_ratios = log_ratios_of(sequence.logprobs(), sequence.behavior_logprobs())?;
    let is_left_behind = -total(&log_ratios) > max_kl * log_ratios.len() as f64;
    let weight = |advantage: f64| if is_left_behind && advantage < 0.0 { 0.0 } else { 1.0 };
    Ok(match sequence.advantages() {
        Advantages::Uniform(advantage) => vec![weight(advantage); sequence.len()],
        Advantages::PerToken(all) => all.iter().map(|&advantage| weight(advantage)).collect(),
    })
}

/// w_t A_t: advantages with their weights in them. Weights of 1 leave every bit alone.
///
/// # Errors
///
/// [`ObjectiveError::LengthMismatch`] unless there is one advantage per weight;
/// [`ObjectiveError::NonFinite`] for a weight that is not finite.
///
/// ```
/// use turnwise_objective::{Advantages, weighted};
///
/// assert_eq!(weighted(Advantages::Uniform(-2.0), &[0.5, 1.0])?, [-1.0, -2.0]);
/// # Ok::<(), turnwise_objective::ObjectiveError>(())
/// ```
pub fn weighted(advantages: Advantages<'_>, weights: &[f64]) -> Result<Vec<f64>, ObjectiveError> {
    if let Some(token) = weights.iter().position(|weight| !weight.is_finite()) {
        let value = weights[token];
        return Err(ObjectiveError::NonFinite { quantity: "weight", token, value });
    }
    match advantages {
        Advantages::Uniform(advantage) => Ok(weights.iter().map(|w| w * advantage).collect()),
        Advantages::PerToken(all) => {
            expect_length("advantages", weights.len(), all.len())?;
            Ok(weights.iter().zip(all).map(|(weight, advantage)| weight * advantage).collect())
        }
    }
}

/// log π − log π_recorded of each token; −∞ where the first is.
fn log_ratios_of(logprobs: &[f64], recorded: &[f64]) -> Result<Vec<f64>, ObjectiveError> {
    expect_length("recorded_logprobs", logprobs.len(), recorded.len())?;
    for (token, (&logprob, &recorded)) in logprobs.iter().zip(recorded).enumerate() {
        if logprob.is_nan() || logprob == f64::INFINITY {
            return Err(ObjectiveError::NonFinite { quantity: "logprob", token, value: logprob });
        }
        if !recorded.is_finite() {
            let (quantity, value) = ("behavior logprob", recorded);
            return Err(ObjectiveError::NonFinite { quantity, token, value });
        }
    }
    Ok(logprobs.iter().zip(recorded).map(|(logprob, recorded)| logprob - recorded).collect())
}

/// Their sum; −∞ where one of them is.
fn total(log_ratios: &[f64]) -> f64 {
    if log_ratios.contains(&f64::NEG_INFINITY) {
        return f64::NEG_INFINITY;
    }
    sum(log_ratios.iter().copied())
}
