//! log π_θ − log π_b: its sum over a sequence, its exponential, and k3.

use crate::sum::{LANES, LaneSum};
use crate::{ObjectiveError, Sequence};

/// Above this, log s (or a token's log ratio) is cut before it is exponentiated: e^512 ≈ 2.3e222.
///
/// Only a negative advantage meets the cut (a positive one is clipped long before). Its loss and
/// gradient stop growing there instead of becoming infinite or, as with a clamp inside the
/// differentiated expression, zero. Tokens it touched are counted in
/// [`SequenceStats::n_capped`](crate::SequenceStats::n_capped).
pub const MAX_LOG_RATIO: f64 = 512.0;

/// The log ratios of one non-empty sequence, summed up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogRatios {
    /// Σ_t (log π_θ − log π_b).
    pub(crate) sum: f64,
    /// (1/n_i) Σ_t (log π_θ − log π_b), the logarithm of eq. 7; −∞ if a token has become
    /// impossible.
    pub(crate) mean: f64,
    /// Σ_t k3_t.
    pub(crate) k3_sum: f64,
}

/// Sums up the log ratios of a sequence with at least one token.
pub(crate) fn log_ratios(sequence: &Sequence<'_>) -> Result<LogRatios, ObjectiveError> {
    let mut sums = LogRatioSums::default();
    let (logprobs, logprob_rest) = sequence.logprobs().as_chunks::<LANES>();
    let (behavior_logprobs, behavior_rest) = sequence.behavior_logprobs().as_chunks::<LANES>();
    for (logprobs, behavior_logprobs) in logprobs.iter().zip(behavior_logprobs) {
        sums.add(&difference(logprobs, behavior_logprobs));
    }
    sums.add(&difference(&padded(logprob_rest), &padded(behavior_rest)));
    sums.finish(sequence)
}

/// [`LogRatios`] as far as a pass over the tokens has come.
#[derive(Debug, Default)]
pub(crate) struct LogRatioSums {
    sum: LaneSum,
    k3: [f64; LANES],
}

impl LogRatioSums {
    /// Adds eight log ratios, 0 where there is no token, and returns their k3.
    #[inline]
    pub(crate) fn add(&mut self, log_ratios: &[f64; LANES]) -> [f64; LANES] {
        let k3 = k3(log_ratios);
        self.sum.add(*log_ratios);
        for (sum, k3) in self.k3.iter_mut().zip(k3) {
            *sum += k3;
        }
        k3
    }

    /// The result for the sequence whose tokens were added.
    ///
    /// Only finite numbers have a finite sum, so the tokens are looked at one by one only when the
    /// sum is not finite.
    pub(crate) fn finish(&self, sequence: &Sequence<'_>) -> Result<LogRatios, ObjectiveError> {
        let total = self.sum.total();
        let total = if total.is_finite() { total } else { explain(sequence)? };
        Ok(LogRatios {
            sum: total,
            mean: total / sequence.len() as f64,
            k3_sum: self.k3.iter().sum(),
        })
    }
}

/// log π_θ − log π_b of eight tokens.
#[inline]
pub(crate) fn difference(
    logprobs: &[f64; LANES],
    behavior_logprobs: &[f64; LANES],
) -> [f64; LANES] {
    std::array::from_fn(|lane| logprobs[lane] - behavior_logprobs[lane])
}

/// Fewer than eight numbers, followed by zeros.
pub(crate) fn padded(rest: &[f64]) -> [f64; LANES] {
    let mut chunk = [0.0; LANES];
    chunk[..rest.len()].copy_from_slice(rest);
    chunk
}

/// The sum of log ratios that is not finite: −∞ where the policy has made a token impossible, an
/// error for anything else.
#[cold]
fn explain(sequence: &Sequence<'_>) -> Result<f64, ObjectiveError> {
    let (mut sum, mut impossible) = (0.0, false);
    let tokens = sequence.logprobs().iter().zip(sequence.behavior_logprobs());
    for (token, (&logprob, &behavior_logprob)) in tokens.enumerate() {
        if !behavior_logprob.is_finite() {
            return Err(ObjectiveError::NonFinite {
                quantity: "behavior logprob",
                token,
                value: behavior_logprob,
            });
        }
        if logprob.is_nan() || logprob == f64::INFINITY {
            return Err(ObjectiveError::NonFinite { quantity: "logprob", token, value: logprob });
        }
        if logprob == f64::NEG_INFINITY {
            impossible = true;
            continue;
        }
        sum += logprob - behavior_logprob;
        if !sum.is_finite() {
            return Err(ObjectiveError::NonFinite { quantity: "log ratio", token, value: sum });
        }
    }
    // Finite numbers whose lanes overflowed although their sum in order did not are still no
    // log-probabilities.
    let token = sequence.len() - 1;
    if impossible {
        Ok(f64::NEG_INFINITY)
    } else {
        Err(ObjectiveError::NonFinite { quantity: "log ratio", token, value: sum })
    }
}

/// The ratio of a log ratio that is cut at [`MAX_LOG_RATIO`].
#[inline]
pub(crate) fn capped_exp(log_ratio: f64) -> f64 {
    log_ratio.min(MAX_LOG_RATIO).exp()
}

/// [`capped_exp`] of eight log ratios, whose k3 is at hand: near 1 it is all that an exponential
/// takes to compute.
#[inline]
pub(crate) fn capped_exps(log_ratios: &[f64; LANES], k3: &[f64; LANES]) -> [f64; LANES] {
    if all_within(log_ratios, 1.0) {
        return std::array::from_fn(|lane| 1.0 + (log_ratios[lane] + k3[lane]));
    }
    log_ratios.map(capped_exp)
}

/// k3 = e^d − 1 − d of eight log ratios d, which are cut at ±[`MAX_LOG_RATIO`] so that the sum
/// stays finite.
///
/// Near 0 the formula as written cancels to noise of either sign; its series does not.
#[inline]
pub(crate) fn k3(log_ratios: &[f64; LANES]) -> [f64; LANES] {
    if all_within(log_ratios, 1.0 / 16.0) {
        log_ratios.map(k3_series::<7>)
    } else if all_within(log_ratios, 1.0) {
        log_ratios.map(k3_series::<16>)
    } else {
        log_ratios.map(k3_of_one)
    }
}

/// k3 of one log ratio, cut like those of [`k3`].
pub(crate) fn k3_of_one(log_ratio: f64) -> f64 {
    let log_ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO);
    if log_ratio.abs() < 0.5 { k3_series::<16>(log_ratio) } else { log_ratio.exp_m1() - log_ratio }
}

/// d²/2! + d³/3! + … + d^(DEGREE+2)/(DEGREE+2)!: exact to a rounding for DEGREE 7 up to 1/16 and
/// DEGREE 16 up to 1.
#[inline]
fn k3_series<const DEGREE: usize>(log_ratio: f64) -> f64 {
    let mut sum = INVERSE_FACTORIALS[DEGREE + 2];
    for degree in (0..DEGREE).rev() {
        sum = sum * log_ratio + INVERSE_FACTORIALS[degree + 2];
    }
    log_ratio * log_ratio * sum
}

const INVERSE_FACTORIALS: [f64; 19] = {
    let (mut values, mut factorial, mut n) = ([1.0; 19], 1.0, 1);
    while n < 19 {
        factorial *= n as f64;
        values[n] = 1.0 / factorial;
        n += 1;
    }
    values
};

/// Whether all eight are at most `bound` in size; NaN is not.
#[inline]
fn all_within(values: &[f64; LANES], bound: f64) -> bool {
    values.iter().fold(true, |all, value| all & (value.abs() <= bound))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_and_the_closed_form_agree_at_every_switch() {
        for log_ratio in [-1.0_f64, -0.75, -0.5, -1.0 / 16.0, 1e-3, 1.0 / 16.0, 0.5, 0.75, 1.0] {
            // Eight tokens of one size take one path; a large neighbour forces the other.
            let alone = [log_ratio; LANES];
            let mut crowded = alone;
            crowded[7] = 3.0;
            let closed = log_ratio.exp_m1() - log_ratio;
            for value in [k3(&alone)[0], k3(&crowded)[0]] {
                assert!(
                    (value - closed).abs() <= 1e-13 * closed + 2e-16,
                    "{log_ratio}: {value} {closed}"
                );
            }
            for value in
                [capped_exps(&alone, &k3(&alone))[0], capped_exps(&crowded, &k3(&crowded))[0]]
            {
                assert!((value / log_ratio.exp() - 1.0).abs() <= 4e-16, "{log_ratio}: {value}");
            }
        }
    }

    #[test]
    fn k3_of_a_tiny_drift_is_half_its_square() {
        assert_eq!(k3(&[1e-9; LANES])[0], 5e-19 * (1.0 + 1e-9 / 3.0));
        assert_eq!(k3(&[0.0; LANES])[0], 0.0);
    }

    #[test]
    fn k3_of_an_impossible_token_is_finite() {
        assert_eq!(k3(&[f64::NEG_INFINITY; LANES])[0], MAX_LOG_RATIO - 1.0);
        assert!(k3(&[800.0; LANES])[0].is_finite());
    }
}
