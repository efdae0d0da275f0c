use std::fmt;

use serde::Serialize;
use turnwise_training::SuccessDifference;

/// Whether a run learned, by its success on held-out tasks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Success rose: the interval of the difference is above 0.
    Learned(SuccessDifference),
    /// Success fell: the interval is below 0.
    Worse(SuccessDifference),
    /// The interval contains 0.
    Undecided(SuccessDifference),
}

impl Verdict {
    pub(crate) fn of(change: SuccessDifference) -> Self {
        if change.ci_low > 0.0 {
            Self::Learned(change)
        } else if change.ci_high < 0.0 {
            Self::Worse(change)
        } else {
            Self::Undecided(change)
        }
    }

    /// Returns the change of success.
    #[must_use]
    pub fn change(self) -> SuccessDifference {
        let (Self::Learned(change) | Self::Worse(change) | Self::Undecided(change)) = self;
        change
    }
}

impl fmt::Display for Verdict {
    /// Formats the verdict as a sentence: `it learned: 0.31 -> 0.78, difference 0.47 [0.41, 0.53]`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let change = self.change();
        match self {
            Self::Learned(_) => write!(formatter, "it learned: ")?,
            Self::Worse(_) => write!(formatter, "it got worse: ")?,
            Self::Undecided(_) => write!(
                formatter,
                "no change that {} episodes could show (it would have to be above {}): ",
                change.episodes,
                hundredths(change.detectable())
            )?,
        }
        let SuccessDifference { before, after, difference, ci_low, ci_high, .. } = change;
        let [before, after, difference, ci_low, ci_high] =
            [before, after, difference, ci_low, ci_high].map(hundredths);
        write!(formatter, "{before} -> {after}, difference {difference} [{ci_low}, {ci_high}]")
    }
}

/// Formats a number with two digits; what rounds to 0 has no sign.
pub(super) fn hundredths(number: f64) -> String {
    let rounded = (100.0 * number).round() / 100.0;
    format!("{:.2}", if rounded == 0.0 { 0.0 } else { rounded })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(ci_low: f64, ci_high: f64) -> String {
        let change = SuccessDifference {
            before: 0.31,
            after: 0.31 + f64::midpoint(ci_low, ci_high),
            difference: f64::midpoint(ci_low, ci_high),
            ci_low,
            ci_high,
            episodes: 256,
            is_paired: true,
        };
        Verdict::of(change).to_string()
    }

    #[test]
    fn a_verdict_says_what_its_interval_shows() {
        assert_eq!(said(0.41, 0.53), "it learned: 0.31 -> 0.78, difference 0.47 [0.41, 0.53]");
        assert_eq!(
            said(-0.25, -0.05),
            "it got worse: 0.31 -> 0.16, difference -0.15 [-0.25, -0.05]"
        );
        assert!(said(-0.094, 0.09).ends_with("difference 0.00 [-0.09, 0.09]"));
        assert_eq!(
            said(-0.09, 0.09),
            "no change that 256 episodes could show (it would have to be above 0.09): 0.31 -> 0.31, difference 0.00 [-0.09, 0.09]"
        );
    }
}
