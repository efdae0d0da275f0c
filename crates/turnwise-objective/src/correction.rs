//! Importance weights for tokens whose recorded log-probabilities are not those of the trainer's
//! policy: the inference engine rounds differently, or its weights are older.
//!
//! Every function returns one detached weight per token, to be multiplied into the advantages
//! ([`weighted`]). A weight of 0 removes only the token's gradient: the token still counts in n_i
//! and in s_i.

use std::ops::Range;

use crate::sequence::expect_length;
use crate::sum::sum;
use crate::{Advantages, ObjectiveError, Sequence};

/// The scope of one importance weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CorrectionLevel<'a> {
    /// Each token: r_t. Low variance, but biased, because the tokens before it are not corrected.
    Token,
    /// The sequence, by the product: Π_t r_t. Unbiased, with a variance that grows with length.
    Sequence,
    /// The sequence, by the geometric mean: (Π_t r_t)^(1/n_i).
    GeometricMean,
    /// Each segment, by its geometric mean; the slice holds the number of tokens of each, in order.
    /// A partial rollout has one segment per policy version.
    Segments(&'a [usize]),
}

/// The treatment of a weight that is too large or too small.
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
        /// The smallest weight that is kept.
        low: f64,
        /// The largest weight that is kept.
        high: f64,
    },
}

impl CorrectionRule {
    /// Returns the weight of a log ratio. The exponential of a product that overflows is ∞, which
    /// is capped like any other ratio.
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

/// Returns one weight per token: π_trainer/π_recorded, at a level, under a rule.
///
/// ```text
/// r_t = π_trainer(y_t) / π_recorded(y_t),  the trainer's before its first step on the batch
/// ```
///
/// If both log-probabilities are equal, the weight is exactly 1.
///
/// # Errors
///
/// [`ObjectiveError::LengthMismatch`]; [`ObjectiveError::InvalidSetting`] for a bound;
/// [`ObjectiveError::NonFinite`] for a number that is not finite, except for a trainer's −∞, which
/// is a ratio of 0.
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

/// Masks off-policy sequences: weight 0 for the tokens with a negative advantage in a sequence that
/// has become improbable under the policy, 1 for all others (DeepSeek-V3.2, arXiv 2512.02556, eq.
/// 9).
///
/// ```text
/// w_t = 0 if A_t < 0 and (1/n_i) Σ_t [log π_b(y_t) − log π_θ(y_t)] > max_kl, else 1
/// ```
///
/// A mistake that the policy would no longer make is a weak signal, and its gradient is not bounded
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

/// Multiplies advantages by weights: w_t A_t. Weights of 1 change no bit.
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

/// Returns log π − log π_recorded of each token; −∞ if the first is −∞.
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

/// Returns the sum of log ratios; −∞ if one of them is −∞.
fn total(log_ratios: &[f64]) -> f64 {
    if log_ratios.contains(&f64::NEG_INFINITY) {
        return f64::NEG_INFINITY;
    }
    sum(log_ratios.iter().copied())
}
