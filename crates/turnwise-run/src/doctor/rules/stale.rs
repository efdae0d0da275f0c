//! Drops of stale episodes that favour short ones.

use turnwise_training::metric;

use crate::doctor::evidence::{Evidence, StepMetrics, mean, n_episodes, share, sum};
use crate::doctor::finding::{Finding, Severity};

/// The share of episodes that are dropped as stale from which a run says so.
const MANY_DROPPED: f64 = 0.05;

/// The length of dropped episodes, in lengths of those kept, from which dropping favours short ones.
const LONGER: f64 = 1.3;

pub(super) fn long_episodes_are_dropped(evidence: &Evidence) -> Option<Finding> {
    let steps = &evidence.steps;
    let (stale, all) = (sum(steps, metric::DROPPED_STALE), n_episodes(steps));
    // Only where most drops are of stale episodes is the mean length of the dropped ones about them.
    let is_mostly_stale = |step: &&StepMetrics| {
        let stale = step.get(metric::DROPPED_STALE).unwrap_or(0.0);
        stale > 0.0 && 2.0 * stale >= step.get(metric::DROPPED).unwrap_or(0.0)
    };
    let of_stale = || steps.iter().filter(is_mostly_stale);
    let dropped = mean(of_stale(), metric::TOKENS_DROPPED_MEAN)?;
    let kept = mean(of_stale(), metric::TOKENS_KEPT_MEAN)?;
    let rate = stale / all;
    (rate >= MANY_DROPPED && dropped > LONGER * kept).then(|| Finding {
        rule: "long_episodes_are_dropped",
        severity: Severity::Slows,
        problem: format!(
            "{} of the episodes were dropped as stale, and these are the long ones: {dropped:.0} tokens, {kept:.0} in those that trained; the policy learns from short episodes alone",
            share(rate, all)
        ),
        change: format!(
            "train.max_staleness = {}, or train.stale = \"mask\", or fewer groups at a time: rollout.groups_per_step = {}",
            2 * evidence.config.train.max_staleness.max(1),
            (evidence.config.rollout.groups_per_step / 2).max(1)
        ),
        examples: Vec::new(),
    })
}
