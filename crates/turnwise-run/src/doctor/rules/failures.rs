//! Episodes that break, and updates that are not finite.

use turnwise_training::metric;

use crate::doctor::evidence::{Evidence, n_episodes, share, sum, which};
use crate::doctor::finding::{Finding, Severity};

/// The share of broken attempts above which a run says so.
const MANY_BREAK: f64 = 0.05;

/// The fewest broken attempts from which a share is computed.
const FEW: f64 = 3.0;

pub(super) fn episodes_break(evidence: &Evidence) -> Option<Finding> {
    let steps = evidence.recent()?;
    let broken = sum(steps, metric::FAULTS);
    let attempts = broken + n_episodes(steps);
    let rate = broken / attempts;
    (broken >= FEW && rate > MANY_BREAK).then(|| Finding {
        rule: "episodes_break",
        severity: Severity::stops_if(rate > 0.5),
        problem: format!(
            "{} of the attempts at an episode broke in {}: the environment, a tool, the engine or a rubric failed",
            share(rate, attempts),
            which(steps)
        ),
        change: format!(
            "see what fails with  turnwise env check {}  and TURNWISE_LOG=debug; where it is only slow, raise limits.environment_timeout_s",
            evidence.config.environment.name
        ),
        examples: Vec::new(),
    })
}

pub(super) fn updates_are_left_out(evidence: &Evidence) -> Option<Finding> {
    let skipped = sum(&evidence.steps, metric::SKIPPED_UPDATES);
    let all = skipped + sum(&evidence.steps, metric::UPDATES);
    let first = evidence
        .steps
        .iter()
        .find(|step| step.get(metric::SKIPPED_UPDATES).is_some_and(|n| n > 0.0))?;
    Some(Finding {
        rule: "updates_are_left_out",
        severity: Severity::stops_if(2.0 * skipped > all),
        problem: format!(
            "{skipped:.0} of {all:.0} updates were left out, the first in step {}: their gradient was not finite",
            first.number
        ),
        change: format!(
            "train.learning_rate = {:.0e}, a third of it, or train.max_grad_norm = {:.1e}",
            evidence.config.train.learning_rate / 3.0,
            evidence.config.train.max_grad_norm / 2.0
        ),
        examples: Vec::new(),
    })
}
