//! A clip range that follows the measured spread of the importance ratio.

use serde::{Deserialize, Serialize};
use turnwise_objective::Clip;

/// Sets the clip range to a multiple of the measured spread: a range that is far from the spread clips everything or
/// nothing, and the spread depends on the model, the learning rate and the lengths.
///
/// ```text
/// σ     geometric mean over steps of the standard deviation of log s, the sequence ratio: of the first ten steps alike,
///       then with weight 0.1 each, and at most four times that of the first ten
/// ε_l = multiple · σ          ε_h = ε_l · 4/3, the proportion of the paper (3e-4 and 4e-4), but at least the paper's
/// ```
///
/// The mean is geometric, because single steps have ten times the usual spread, and would widen the range for long. It
/// is slow and bounded, because a policy that diverges has a growing spread, and the range has to hold it back.
///
/// The first step, before there is a measurement, uses [`AutoClip::first`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AutoClip {
    /// The lower bound `ε_l` in units of σ.
    pub multiple: f64,
    /// The range of the first step.
    pub first: Clip,
}

/// `ε_h / ε_l` of arXiv 2507.18071, section 5.1.
const HIGH_OVER_LOW: f64 = 4.0 / 3.0;
/// The weight of a new measurement, once there are so many that it is more than an equal share.
const RATE: f64 = 0.1;
/// The number of steps that count alike.
const N_FIRST: u64 = 10;
/// The most growth of σ after the first steps.
const MOST_GROWTH: f64 = 4.0;
/// The smallest bound, which is the paper's: where weights move the ratio by less, as with one mini-batch of fresh rollouts,
/// the rounding of an engine would decide what is clipped.
const LEAST: f64 = 3e-4;
/// The largest lower bound; 1 would mean no bound.
const MOST: f64 = 0.9;

impl AutoClip {
    /// `ε_l` in units of σ: with normal log-ratios, a quarter of the sequences lie outside of the range, and about half of
    /// them are pushed further out. The paper clips about 15 % of its tokens (figure 2).
    pub const MULTIPLE: f64 = 1.0;

    /// Returns the range for a measured spread.
    pub(crate) fn range(&self, spread: &Spread) -> Clip {
        let Some(sigma) = spread.sigma() else { return self.first };
        let low = (self.multiple * sigma).clamp(LEAST, MOST);
        Clip::new(low, low * HIGH_OVER_LOW).unwrap_or(self.first)
    }
}

/// The measured spread of log s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    /// The mean of log σ.
    log: f64,
    n_steps: u64,
    /// The mean over the first steps; `None` until they are over, and in older checkpoints.
    #[serde(default)]
    first: Option<f64>,
}

impl Spread {
    /// Adds the standard deviation of a step; a step without a spread says nothing.
    pub(crate) fn observe(&mut self, std: f64) {
        if !(std.is_finite() && std > 0.0) {
            return;
        }
        self.n_steps += 1;
        let rate = RATE.max(1.0 / self.n_steps as f64);
        self.log += rate * (std.ln() - self.log);
        if self.n_steps >= N_FIRST {
            let first = *self.first.get_or_insert(self.log);
            self.log = self.log.min(first + MOST_GROWTH.ln());
        }
    }

    /// Returns σ; `None` before the first measurement.
    pub(crate) fn sigma(&self) -> Option<f64> {
        (self.n_steps > 0).then(|| self.log.exp())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AUTO: AutoClip = AutoClip { multiple: 1.5, first: Clip::PAPER_GRPO };

    fn after(stds: &[f64]) -> Spread {
        let mut spread = Spread::default();
        for std in stds {
            spread.observe(*std);
        }
        spread
    }

    #[test]
    fn the_range_is_the_first_one_until_a_spread_is_measured() {
        assert_eq!(AUTO.range(&after(&[])), Clip::PAPER_GRPO);
        assert_eq!(AUTO.range(&after(&[0.0, f64::NAN])), Clip::PAPER_GRPO);
        let range = AUTO.range(&after(&[0.02]));
        assert!((range.low() - 0.03).abs() < 1e-12 && (range.high() - 0.04).abs() < 1e-12);
    }

    #[test]
    fn an_engine_that_rounds_does_not_decide_what_is_clipped() {
        let range = AUTO.range(&after(&[1e-6, 1e-5]));
        let paper = Clip::PAPER_GSPO;
        assert!((range.low() - paper.low()).abs() < 1e-12, "{range:?}");
        assert!((range.high() - paper.high()).abs() < 1e-12, "{range:?}");
    }

    #[test]
    fn the_first_steps_count_alike_and_later_ones_are_followed_slowly() {
        let sigma = |stds: &[f64]| after(stds).sigma().unwrap();
        assert!((sigma(&[0.01, 0.04]) - 0.02).abs() < 1e-12);
        let mut stds = vec![0.01; 50];
        assert!((sigma(&stds) - 0.01).abs() < 1e-12);
        stds.push(0.1);
        assert!(sigma(&stds) < 0.013);
        stds.extend([0.03; 100]);
        assert!(sigma(&stds) > 0.0299);
        // A policy that diverges does not widen the range for ever, and one that calms down narrows it.
        stds.extend([1.0; 1000]);
        assert!((sigma(&stds) - 0.04).abs() < 1e-9);
        stds.extend([0.001; 100]);
        assert!(sigma(&stds) < 0.0011);
    }

    proptest! {
        #[test]
        fn every_spread_gives_a_valid_range_in_the_papers_proportion(
            stds in prop::collection::vec(1e-12_f64..1e3, 1..20),
            multiple in 1e-3_f64..1e3,
        ) {
            let range = AutoClip { multiple, ..AUTO }.range(&after(&stds));
            prop_assert!((LEAST..=MOST).contains(&range.low()));
            prop_assert!((range.high() / range.low() - 4.0 / 3.0).abs() < 1e-9);
        }
    }
}
