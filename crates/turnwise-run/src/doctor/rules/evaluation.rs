//! An evaluation that is too small to show a change.

use turnwise_training::SuccessDifference;

use crate::doctor::evidence::Evidence;
use crate::doctor::finding::{Finding, Severity};
use crate::doctor::verdict::hundredths;

/// The smallest difference of success that an evaluation should show.
const COARSE: f64 = 0.1;

/// The half-width of the interval that the advice aims at.
const FINE: f64 = 0.02;

pub(super) fn evaluation_is_small(evidence: &Evidence) -> Option<Finding> {
    let change = evidence.change?;
    let is_undecided = change.ci_low <= 0.0 && change.ci_high >= 0.0;
    let [detectable, difference, ci_low, ci_high] =
        [change.detectable(), change.difference, change.ci_low, change.ci_high].map(hundredths);
    (is_undecided && change.detectable() > COARSE).then(|| Finding {
        rule: "evaluation_is_small",
        severity: Severity::Slows,
        problem: format!(
            "the evaluation is too small: {} episodes show a difference above {detectable}, and measured {difference} [{ci_low}, {ci_high}]",
            change.episodes
        ),
        change: larger(&change, evidence.n_held_out),
        examples: Vec::new(),
    })
}

/// Returns the size of a better evaluation. Episodes of a task that was played before say little, so that more episodes
/// than tasks are no help.
fn larger(change: &SuccessDifference, n_held_out: Option<usize>) -> String {
    let wanted = change.episodes_for(FINE);
    match n_held_out.filter(|n| *n < wanted) {
        None => format!(
            "about {wanted} held-out episodes of different tasks give ±2 %: eval.episodes = {}",
            rounded(wanted)
        ),
        Some(n) if change.episodes < n => format!(
            "eval.episodes = {n} plays every held-out task once, and gives about ±{:.0} %; ±2 % takes about {wanted} held-out tasks",
            100.0 * change.detectable() * (change.episodes as f64 / n as f64).sqrt()
        ),
        Some(n) => format!(
            "add held-out tasks to the environment: there are {n}, and ±2 % takes about {wanted}; more episodes of the same tasks say little"
        ),
    }
}

/// Rounds up to two digits.
fn rounded(n: usize) -> usize {
    let unit = 10_usize.pow(n.max(1).ilog10().saturating_sub(1));
    n.div_ceil(unit) * unit
}
