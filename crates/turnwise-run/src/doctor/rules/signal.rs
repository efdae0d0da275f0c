//! Groups whose rewards differ: all that a run learns from.

use turnwise_training::metric;

use crate::doctor::evidence::{Evidence, StepMetrics, WINDOW, mean, which};
use crate::doctor::finding::{Finding, Severity};

/// The share of groups with different rewards below which a run learns slowly.
const FEW_DIFFER: f64 = 0.1;

const EASIER: &str =
    "make tasks easier, give partial rewards, raise rollout.group_size, or begin with a warm start";

pub(super) fn rewards_do_not_differ(evidence: &Evidence) -> Option<Finding> {
    let steps = evidence.recent()?;
    let mixed = mean(steps, metric::MIXED_FRAC)?;
    if mixed > 0.0 && evidence.steps.len() >= WINDOW {
        return few_differ(evidence, steps, mixed);
    }
    if mixed > 0.0 {
        return None;
    }
    let [none, all] = [metric::NONE_SOLVED_FRAC, metric::SOLVED_FRAC]
        .map(|metric| mean(steps, metric).unwrap_or(0.0));
    let steps = which(steps);
    let (problem, change) = if all > none {
        let share = 100.0 * all;
        (
            format!(
                "no group had different rewards in {steps}, and {share:.0} % were solved by every member: nothing more can be learnt from these tasks"
            ),
            "make the tasks harder, or stop here".to_owned(),
        )
    } else {
        let share = 100.0 * none;
        (
            format!(
                "no group had different rewards in {steps}, and {share:.0} % were solved by no member: nothing can be learnt"
            ),
            EASIER.to_owned(),
        )
    };
    // A policy that has learnt its tasks has nothing more to learn, and nothing is wrong with it.
    let is_done = all > none && evidence.has_learnt();
    (!is_done).then(|| Finding {
        rule: "rewards_do_not_differ",
        severity: Severity::Stops,
        problem,
        change,
        examples: Vec::new(),
    })
}

fn few_differ(evidence: &Evidence, steps: &[StepMetrics], mixed: f64) -> Option<Finding> {
    (mixed < FEW_DIFFER && !evidence.is_solved() && !evidence.has_learnt()).then(|| Finding {
        rule: "rewards_do_not_differ",
        severity: Severity::Slows,
        problem: format!(
            "only {:.1} % of the groups had different rewards in {}: the others teach nothing",
            100.0 * mixed,
            which(steps)
        ),
        change: format!("{EASIER}; rollout.dynamic_sampling replaces groups that teach nothing"),
        examples: Vec::new(),
    })
}
