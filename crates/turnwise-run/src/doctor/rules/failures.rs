//! Runs that an error ended, episodes that break, and updates that are not finite.

use turnwise_rollout::Faults;
use turnwise_training::metric;

use super::update::gentler_rate;
use crate::doctor::events::RunFailure;
use crate::doctor::evidence::{Evidence, StepMetrics, n_episodes, share, sum, which};
use crate::doctor::finding::{Finding, Severity};
use crate::failure::{help_for, naming};
use crate::text::{fit, one_line};

/// The share of broken attempts above which a run says so.
const MANY_BREAK: f64 = 0.05;

/// The fewest broken attempts from which a share is computed.
const FEW: f64 = 3.0;

/// The longest text of a fault.
const WIDTH: usize = 200;

pub(super) fn run_failed(evidence: &Evidence) -> Option<Finding> {
    let RunFailure { text, help } = evidence.failure.clone()?;
    Some(Finding {
        rule: "run_failed",
        severity: Severity::Stops,
        problem: format!(
            "the run stopped with an error, after {} of {} steps: {text}",
            evidence.steps.len(),
            evidence.config.run.steps
        ),
        change: if help.is_empty() {
            "mend the cause, and go on with  turnwise resume".to_owned()
        } else {
            help
        },
        examples: Vec::new(),
    })
}

pub(super) fn episodes_break(evidence: &Evidence) -> Option<Finding> {
    let steps = evidence.recent()?;
    let broken = sum(steps, metric::FAULTS);
    let attempts = broken + n_episodes(steps);
    let rate = broken / attempts;
    let environment = &evidence.config.environment.name;
    let (why, change) = match most_frequent(steps) {
        Some(Faults { first, n }) => (
            format!("{n} of {broken:.0} with {first}"),
            naming(help_for(first.reason), environment, evidence.config.agent.command.as_deref()),
        ),
        None => (
            "the environment, a tool, the engine or a rubric failed".to_owned(),
            format!(
                "see what fails with  turnwise env check {environment}  and TURNWISE_LOG=debug; where it is only slow, raise limits.environment_timeout_s"
            ),
        ),
    };
    (broken >= FEW && rate > MANY_BREAK).then(|| Finding {
        rule: "episodes_break",
        severity: Severity::stops_if(rate > 0.5),
        problem: format!(
            "{} of the attempts at an episode broke in {}: {}",
            share(rate, attempts),
            which(steps),
            fit(&one_line(&why), WIDTH)
        ),
        change,
        examples: Vec::new(),
    })
}

/// Returns the most frequent kind of fault in these steps; a log of an earlier version has none.
fn most_frequent(steps: &[StepMetrics]) -> Option<Faults> {
    let mut kinds: Vec<Faults> = Vec::new();
    for faults in steps.iter().flat_map(|step| &step.faults) {
        match kinds.iter_mut().find(|kind| kind.first.reason == faults.first.reason) {
            Some(kind) => kind.n += faults.n,
            None => kinds.push(faults.clone()),
        }
    }
    kinds.into_iter().rev().max_by_key(|kind| kind.n)
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
            gentler_rate(evidence, 1.0 / 3.0),
            evidence.config.train.max_grad_norm / 2.0
        ),
        examples: Vec::new(),
    })
}
