//! Collapse: a policy far from its reference, short answers, no variety.

use turnwise_training::metric::{self, Metric};

use super::update::gentler_rate;
use crate::doctor::evidence::{Evidence, mean, which};
use crate::doctor::finding::{Finding, Severity};

/// The KL from the reference policy above which a policy is another one, in nats per token.
const LEFT: f64 = 0.5;

/// The fraction of the first episode length below which the policy has collapsed.
const SHORT: f64 = 0.2;

/// The fraction of the first entropy below which the policy has collapsed. A policy that has learnt a game keeps a
/// fifth.
const COLLAPSED: f64 = 0.05;

/// Returns the success rate at the start, and now.
fn success(evidence: &Evidence) -> Option<(f64, f64)> {
    let first = mean(evidence.first(), metric::SUCCESS_RATE)?;
    Some((first, mean(evidence.recent()?, metric::SUCCESS_RATE)?))
}

fn is_better(evidence: &Evidence) -> bool {
    evidence.has_learnt() || success(evidence).is_some_and(|(first, now)| now > first)
}

/// Returns the mean at the start and now of a metric that fell below this fraction of its start.
fn fallen(evidence: &Evidence, metric: Metric, to: f64) -> Option<(f64, f64)> {
    let first = mean(evidence.first(), metric)?;
    let now = mean(evidence.recent()?, metric)?;
    (now < to * first).then_some((first, now))
}

/// Returns the success rate at the start and now in words.
fn beside(evidence: &Evidence) -> String {
    success(evidence).map_or_else(String::new, |(first, now)| {
        format!(", while success went from {first:.2} to {now:.2}")
    })
}

fn earlier(evidence: &Evidence) -> String {
    format!(
        "go back to an earlier checkpoint with train.learning_rate = {:.0e}",
        gentler_rate(evidence, 0.1)
    )
}

pub(super) fn policy_left_its_reference(evidence: &Evidence) -> Option<Finding> {
    let steps = evidence.recent()?;
    let kl = mean(steps, metric::KL_REFERENCE).filter(|kl| *kl > LEFT)?;
    (!is_better(evidence)).then(|| Finding {
        rule: "policy_left_its_reference",
        severity: Severity::Stops,
        problem: format!(
            "the policy left its reference: KL {kl:.2} nats per token in {}, and above {LEFT} it is another policy{}",
            which(steps),
            beside(evidence)
        ),
        change: format!(
            "objective.kl.beta = {:.0e}, or {}",
            10.0 * evidence.config.objective.kl.beta,
            earlier(evidence)
        ),
        examples: Vec::new(),
    })
}

pub(super) fn answers_became_short(evidence: &Evidence) -> Option<Finding> {
    let (was, is) = fallen(evidence, metric::TOKENS_MEAN, SHORT)?;
    (!is_better(evidence)).then(|| Finding {
        rule: "answers_became_short",
        severity: Severity::Stops,
        problem: format!(
            "the policy collapsed: {was:.0} tokens an episode at first, {is:.0} now{}",
            beside(evidence)
        ),
        change: earlier(evidence),
        examples: Vec::new(),
    })
}

pub(super) fn policy_hardly_varies(evidence: &Evidence) -> Option<Finding> {
    let (was, is) = fallen(evidence, metric::ENTROPY, COLLAPSED)?;
    // A policy that has learnt its task need not vary.
    (!evidence.is_solved()).then(|| Finding {
        rule: "policy_hardly_varies",
        severity: Severity::stops_if(!is_better(evidence)),
        problem: format!(
            "the policy hardly varies any more: entropy {was:.2} nats at first, {is:.3} now{}; episodes of a group become alike, and little more can be learnt",
            beside(evidence)
        ),
        change: format!(
            "a smaller learning rate keeps it longer: train.learning_rate = {:.0e}",
            gentler_rate(evidence, 1.0 / 3.0)
        ),
        examples: Vec::new(),
    })
}
