//! Tokens whose log-probabilities show which weights a server has.

use turnwise_trajectory::TokenId;

/// Tokens, and their log-probabilities under the weights that are published.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WeightProbe {
    /// At least two tokens.
    pub ids: Vec<TokenId>,
    /// Entry `t` is the log-probability of `ids[t + 1]` given `ids[..=t]` at temperature 1, in nats.
    pub logprobs: Vec<f32>,
}

impl WeightProbe {
    /// Returns the largest difference to a server's log-probabilities, in nats; NaN if one of them is NaN or missing.
    pub(crate) fn gap(&self, scored: &[f32]) -> f64 {
        if scored.len() != self.logprobs.len() {
            return f64::NAN;
        }
        let pairs = self.logprobs.iter().zip(scored);
        let gaps = pairs.map(|(own, theirs)| (f64::from(*own) - f64::from(*theirs)).abs());
        gaps.fold(0.0, largest_or_nan)
    }
}

/// Returns the larger number, or NaN if one of them is NaN; `f64::max` would drop it.
fn largest_or_nan(one: f64, other: f64) -> f64 {
    if one.is_nan() || other.is_nan() { f64::NAN } else { one.max(other) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_the_largest_difference_and_never_hides_what_is_missing() {
        let probe = WeightProbe { ids: vec![1, 2, 3], logprobs: vec![-1.0, -2.0] };
        assert_eq!(probe.gap(&[-1.0, -2.5]), 0.5);
        assert!(probe.gap(&[-1.0]).is_nan());
        assert!(probe.gap(&[f32::NAN, -2.0]).is_nan());
        assert!(probe.gap(&[-1.0, f32::NAN]).is_nan());
    }
}
