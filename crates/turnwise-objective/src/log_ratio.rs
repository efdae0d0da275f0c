//! log π_θ − log π_b: its sum over a sequence, its exponential, and k3.

use turnwise_kernels::lanes::LANES;
use turnwise_kernels::lanes::{F64x8, Vectorized, lanes, run_widest};

use crate::sum::{LaneSum, SMALL, SmallSum};
use crate::{ObjectiveError, Sequence};

/// The bound at which log s (or a token's log ratio) is clamped before the exponential: e^512 ≈
/// 2.3e222.
///
/// Only a token with a negative advantage reaches the bound (with a positive one it is clipped long
/// before). At the bound, loss and gradient stop growing instead of becoming infinite or, as with a
/// clamp inside the differentiated expression, zero. Clamped tokens are counted in
/// [`SequenceStats::n_capped`](crate::SequenceStats::n_capped).
pub const MAX_LOG_RATIO: f64 = 512.0;

/// The sums of the log ratios of one non-empty sequence.
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

/// Sums the log ratios of a sequence with at least one token.
pub(crate) fn log_ratios(sequence: &Sequence<'_>) -> Result<LogRatios, ObjectiveError> {
    run_widest(SumLogRatios(sequence)).checked(sequence)
}

/// The pass over a sequence's log ratios.
struct SumLogRatios<'s, 'a>(&'s Sequence<'a>);

impl Vectorized for SumLogRatios<'_, '_> {
    type Output = LogRatios;

    #[inline(always)]
    fn run<V: F64x8>(self) -> LogRatios {
        let mut sums = LogRatioSums::<V>::zero();
        let (logprobs, logprob_rest) = self.0.logprobs().as_chunks::<LANES>();
        let (behavior_logprobs, behavior_rest) = self.0.behavior_logprobs().as_chunks::<LANES>();
        let blocks = logprobs.chunks(SmallSum::<V>::CAPACITY);
        for (logprobs, behavior_logprobs) in
            blocks.zip(behavior_logprobs.chunks(SmallSum::<V>::CAPACITY))
        {
            sums.add_block(logprobs, behavior_logprobs);
        }
        if !logprob_rest.is_empty() {
            sums.add(V::load(&padded(logprob_rest)).minus(V::load(&padded(behavior_rest))));
        }
        sums.finish(self.0)
    }
}

/// [`LogRatios`] of the tokens that a pass has read so far.
#[derive(Debug)]
pub(crate) struct LogRatioSums<V = [f64; LANES]> {
    sum: LaneSum<V>,
    k3: V,
}

impl<V: F64x8> LogRatioSums<V> {
    #[inline(always)]
    pub(crate) fn zero() -> Self {
        Self { sum: LaneSum::zero(), k3: V::zero() }
    }

    /// Adds eight log ratios, 0 for padding, and returns their k3.
    #[inline(always)]
    pub(crate) fn add(&mut self, log_ratios: V) -> V {
        let k3 = k3(log_ratios);
        self.sum.add(log_ratios);
        self.k3 = self.k3.plus(k3);
        k3
    }

    /// Adds the log ratios of at most [`SmallSum::CAPACITY`] vectors. Small ones, which most are, take fewer operations.
    #[inline(always)]
    fn add_block(&mut self, logprobs: &[[f64; LANES]], behavior_logprobs: &[[f64; LANES]]) {
        let mut small = SmallSum::<V>::zero();
        for (logprobs, behavior_logprobs) in logprobs.iter().zip(behavior_logprobs) {
            V::ask_ahead(logprobs);
            V::ask_ahead(behavior_logprobs);
            let log_ratios = V::load(logprobs).minus(V::load(behavior_logprobs));
            if log_ratios.all_within(SMALL) {
                small.add(log_ratios);
                self.k3 = self.k3.plus(k3_series::<SMALL_DEGREE, V>(log_ratios));
            } else {
                self.add(log_ratios);
            }
        }
        small.add_to(&mut self.sum);
    }

    /// Returns the sums over the added tokens, not yet [checked](LogRatios::checked).
    #[inline(always)]
    pub(crate) fn finish(&self, sequence: &Sequence<'_>) -> LogRatios {
        let sum = self.sum.total();
        let k3_sum = self.k3.stored().iter().sum();
        LogRatios { sum, mean: sum / sequence.len() as f64, k3_sum }
    }
}

impl LogRatios {
    /// Checks that the sums are finite. Only finite numbers have a finite sum, so the tokens are
    /// inspected one by one only if the sum is not finite.
    pub(crate) fn checked(self, sequence: &Sequence<'_>) -> Result<Self, ObjectiveError> {
        if self.sum.is_finite() {
            return Ok(self);
        }
        let sum = explain(sequence)?;
        Ok(Self { sum, mean: sum / sequence.len() as f64, ..self })
    }
}

/// Returns up to seven numbers, padded with zeros.
#[inline(always)]
pub(crate) fn padded(rest: &[f64]) -> [f64; LANES] {
    let mut chunk = [0.0; LANES];
    chunk[..rest.len()].copy_from_slice(rest);
    chunk
}

/// Explains a sum of log ratios that is not finite: −∞ if the policy has made a token impossible,
/// else an error.
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
    // Lanes can overflow with finite numbers whose sum in order does not overflow; such numbers are
    // not log-probabilities either.
    let token = sequence.len() - 1;
    if impossible {
        Ok(f64::NEG_INFINITY)
    } else {
        Err(ObjectiveError::NonFinite { quantity: "log ratio", token, value: sum })
    }
}

/// Returns the ratio of a log ratio that is clamped at [`MAX_LOG_RATIO`].
#[inline(always)]
pub(crate) fn capped_exp(log_ratio: f64) -> f64 {
    log_ratio.min(MAX_LOG_RATIO).exp()
}

/// Applies [`capped_exp`] to eight log ratios with known k3: near 1, the ratio follows from k3
/// without an exponential.
#[inline(always)]
pub(crate) fn capped_exps(log_ratios: &[f64; LANES], k3: &[f64; LANES]) -> [f64; LANES] {
    if log_ratios.all_within(1.0) {
        return lanes(|lane| 1.0 + (log_ratios[lane] + k3[lane]));
    }
    capped_exps_one_by_one(log_ratios)
}

/// Returns k3 = e^d − 1 − d of eight log ratios d, which are clamped at ±[`MAX_LOG_RATIO`] so that
/// the sum stays finite.
///
/// Near 0 the formula as written suffers cancellation; its series does not.
#[inline(always)]
pub(crate) fn k3<V: F64x8>(log_ratios: V) -> V {
    if log_ratios.all_within(1.0 / 16.0) {
        k3_series::<7, V>(log_ratios)
    } else if log_ratios.all_within(1.0) {
        k3_series::<16, V>(log_ratios)
    } else {
        V::load(&k3_one_by_one(&log_ratios.stored()))
    }
}

// The library's exponential is not vectorised, and an inlined call would take the registers of the
// surrounding loop.
#[cold]
#[inline(never)]
fn capped_exps_one_by_one(log_ratios: &[f64; LANES]) -> [f64; LANES] {
    log_ratios.map(capped_exp)
}

#[cold]
#[inline(never)]
fn k3_one_by_one(log_ratios: &[f64; LANES]) -> [f64; LANES] {
    log_ratios.map(k3_of_one)
}

/// Returns k3 of one log ratio, clamped like those of [`k3`].
pub(crate) fn k3_of_one(log_ratio: f64) -> f64 {
    let log_ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO);
    if log_ratio.abs() < 0.5 {
        k3_series::<16, [f64; LANES]>([log_ratio; LANES])[0]
    } else {
        log_ratio.exp_m1() - log_ratio
    }
}

/// The degree of the series of k3 for log ratios up to [`SMALL`].
const SMALL_DEGREE: usize = 6;

/// Returns d²/2! + d³/3! + … + d^(DEGREE+2)/(DEGREE+2)!: exact up to one rounding for DEGREE 6 up
/// to 1/32, DEGREE 7 up to 1/16 and DEGREE 16 up to 1.
#[inline(always)]
fn k3_series<const DEGREE: usize, V: F64x8>(log_ratios: V) -> V {
    let mut sum = V::splat(INVERSE_FACTORIALS[DEGREE + 2]);
    for degree in (0..DEGREE).rev() {
        sum = sum.times(log_ratios).plus(V::splat(INVERSE_FACTORIALS[degree + 2]));
    }
    log_ratios.times(log_ratios).times(sum)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_and_the_closed_form_agree_at_every_switch() {
        for log_ratio in
            [-1.0_f64, -0.5, -1.0 / 16.0, -1.0 / 32.0, 1e-3, 1.0 / 32.0, 1.0 / 16.0, 0.5, 0.75, 1.0]
        {
            // Eight equal tokens take one path; a large neighbour forces the other.
            let alone = [log_ratio; LANES];
            let mut crowded = alone;
            crowded[7] = 3.0;
            let closed = log_ratio.exp_m1() - log_ratio;
            let degree_6 = k3_series::<SMALL_DEGREE, _>(alone.map(|d| d.clamp(-SMALL, SMALL)))[0];
            let small = if log_ratio.abs() <= SMALL { degree_6 } else { closed };
            for value in [k3(alone)[0], k3(crowded)[0], small] {
                assert!(
                    (value - closed).abs() <= 1e-13 * closed + 2e-16,
                    "{log_ratio}: {value} {closed}"
                );
            }
            for value in
                [capped_exps(&alone, &k3(alone))[0], capped_exps(&crowded, &k3(crowded))[0]]
            {
                assert!((value / log_ratio.exp() - 1.0).abs() <= 4e-16, "{log_ratio}: {value}");
            }
        }
    }

    #[test]
    fn k3_of_a_tiny_drift_is_half_its_square() {
        assert_eq!(k3([1e-9; LANES])[0], 5e-19 * (1.0 + 1e-9 / 3.0));
        assert_eq!(k3([0.0; LANES])[0], 0.0);
    }

    #[test]
    fn k3_of_an_impossible_token_is_finite() {
        assert_eq!(k3([f64::NEG_INFINITY; LANES])[0], MAX_LOG_RATIO - 1.0);
        assert!(k3([800.0; LANES])[0].is_finite());
    }
}
