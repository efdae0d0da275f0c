//! An evaluation that is too small to show a change.

use crate::doctor::evidence::Evidence;
use crate::doctor::finding::{Finding, Severity};

/// The smallest difference of success that an evaluation should show.
const COARSE: f64 = 0.1;

/// The half-width of the interval that the advice aims at.
const FINE: f64 = 0.02;

pub(super) fn evaluation_is_small(evidence: &Evidence) -> Option<Finding> {
    let change = evidence.change?;
    let is_undecided = change.ci_low <= 0.0 && change.ci_high >= 0.0;
    (is_undecided && change.detectable() > COARSE).then(|| Finding {
        rule: "evaluation_is_small",
        severity: Severity::Slows,
        problem: format!(
            "the evaluation is too small: {} episodes show a difference above {:.2}, and measured {:+.2} [{:+.2}, {:+.2}]",
            change.episodes,
            change.detectable(),
            change.difference,
            change.ci_low,
            change.ci_high
        ),
        change: format!(
            "about {} held-out episodes of different tasks give ±2 %: eval.episodes = {}",
            change.episodes_for(FINE),
            rounded(change.episodes_for(FINE))
        ),
        examples: Vec::new(),
    })
}

/// Rounds up to two digits.
fn rounded(n: usize) -> usize {
    let unit = 10_usize.pow(n.max(1).ilog10().saturating_sub(1));
    n.div_ceil(unit) * unit
}
