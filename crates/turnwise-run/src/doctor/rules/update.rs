//! The size of an update: how far the log-probabilities move.

use turnwise_training::metric;

use crate::doctor::evidence::{Evidence, StepMetrics, median_of_updates};
use crate::doctor::finding::{Finding, Severity};

/// The largest change of the policy in one step, in nats per token. At a learning rate of 1e-3 in full fine-tuning, a
/// model of 135M weights moved by 1.05 and was destroyed; the small models of `turnwise try` move by up to 0.3 and
/// learn.
const FAR: f64 = 0.5;

/// The change to aim at after a step that went too far, in nats per token. The change grows at least in proportion to
/// the learning rate: at 0.5 a step of a small model moved it by 11 nats, at 10 by 384.
const SAFE: f64 = 0.1;

/// The change of the policy in a step below which a run of usual length moves nowhere, in nats per token: a thousand
/// such steps change the log-probability of a token by at most 0.14 nats. A step of `turnwise try` moves it by 5e-3.
const LITTLE: f64 = 1e-8;

/// The number of steps by which the sentence explains a small change.
const MANY_STEPS: f64 = 1000.0;

/// The change to aim at where a policy hardly moves, in nats per token.
const USUAL: f64 = 1e-4;

pub(super) fn policy_moves_far(evidence: &Evidence) -> Option<Finding> {
    let far = |kl: &f64| *kl > FAR;
    let mut moved = evidence.steps.iter().filter_map(|step| {
        let kl = step.get(metric::K3).filter(far)?;
        Some((step.number, kl))
    });
    let (number, kl) = moved.next()?;
    let more = match moved.count() {
        0 => String::new(),
        n => format!(", and {n} later steps did so too"),
    };
    Some(Finding {
        rule: "policy_moves_far",
        severity: Severity::stops_if(!evidence.has_learnt()),
        problem: format!(
            "the learning rate is too large: step {number} moved the policy by {kl:.2} nats per token{more}, and more than {FAR} often destroys it"
        ),
        change: format!(
            "go back to an earlier checkpoint with train.learning_rate = {:.0e}",
            gentler_rate(evidence, 0.1)
        ),
        examples: Vec::new(),
    })
}

/// Returns this fraction of the learning rate, and less where a step moved the policy too far for it.
pub(super) fn gentler_rate(evidence: &Evidence, fraction: f64) -> f64 {
    let moved = evidence.steps.iter().filter_map(|step| step.get(metric::K3));
    let furthest = moved.fold(0.0, f64::max);
    let fraction = if furthest > FAR { fraction.min(SAFE / furthest) } else { fraction };
    evidence.config.train.learning_rate * fraction
}

pub(super) fn policy_hardly_moves(evidence: &Evidence) -> Option<Finding> {
    evidence.recent().filter(|_| evidence.has_ratios() && !evidence.has_learnt())?;
    let rate = evidence.config.train.learning_rate;
    // Not while the learning rate rises, and not at the end of its decay.
    let is_at_full_rate =
        |step: &&StepMetrics| step.get(metric::LEARNING_RATE).is_none_or(|now| now >= rate / 2.0);
    let kl = median_of_updates(evidence.steps.iter().filter(is_at_full_rate), metric::K3)?;
    // k3 is half the mean square of the change of a log-probability, which grows with the learning rate.
    let change = (2.0 * kl.max(0.0)).sqrt();
    let factor = (USUAL / kl.max(1e-12)).sqrt().clamp(10.0, 1e4);
    (kl < LITTLE).then(|| Finding {
        rule: "policy_hardly_moves",
        severity: Severity::Stops,
        problem: format!(
            "the learning rate is too small: at {rate:.0e} a step moves the policy by {kl:.1e} nats per token, so that a thousand steps change the log-probability of a token by at most {:.1e} nats",
            MANY_STEPS * change
        ),
        change: format!("train.learning_rate = {:.0e}, and more if this line comes again", rate * factor),
        examples: Vec::new(),
    })
}
