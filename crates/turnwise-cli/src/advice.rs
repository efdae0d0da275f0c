//! What the numbers of a run mean, where they mean that something is wrong.

use turnwise::training::StepReport;
use turnwise::training::metric::{self, Metric};

use crate::config::Config;

/// Reads the metrics of each step and says in words what is wrong with the run, each kind of thing once.
#[derive(Debug, Default)]
pub(crate) struct Advice {
    steps: u64,
    /// Steps since a group had different rewards.
    without_signal: u64,
    /// Steps in a row in which clipping removed most gradients.
    clipped: u64,
    /// Steps with groups of different rewards, over the process's life.
    with_signal: u64,
    /// Sampled tokens of an episode in the first steps.
    first_length: Mean,
    /// Entropy in the first steps, in nats.
    first_entropy: Mean,
    said: Vec<Kind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    NoSignal,
    Clipped,
    Moved,
    Shorter,
    Collapsed,
    Skipped,
}

/// A mean over the first steps of a run.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    n: u64,
}

/// Steps that a beginning is measured over, and that something has to last.
const WINDOW: u64 = 5;
/// A share of clipped tokens above this leaves little to learn from.
const MUCH_CLIPPED: f64 = 0.8;
/// Nats per token by which one step may move the policy. At 1e-3 in full fine-tuning SmolLM2 moved by 1.05 and was destroyed;
/// the small models of `turnwise try` move by up to 0.3 and learn.
const FAR: f64 = 0.5;
/// What is left of the length at the beginning when a policy collapses.
const SHORT: f64 = 0.2;
/// The same of the entropy. A policy that has learnt a game keeps a fifth.
const COLLAPSED: f64 = 0.05;

/// A success rate of a task that is learnt.
const LEARNT: f64 = 0.9;

impl Advice {
    /// The new things that are wrong, as sentences.
    pub(crate) fn read(&mut self, report: &StepReport, config: &Config) -> Vec<String> {
        let get = |metric: Metric| report.metrics.get(metric);
        self.steps += 1;
        let mixed = get(metric::MIXED_FRAC).unwrap_or(0.0);
        self.without_signal = if mixed > 0.0 { 0 } else { self.without_signal + 1 };
        self.with_signal += u64::from(mixed > 0.0);
        let clipped = get(metric::CLIP_FRAC).unwrap_or(0.0);
        self.clipped = if clipped > MUCH_CLIPPED { self.clipped + 1 } else { 0 };
        let mut said = Vec::new();
        let mut say = |kind: Kind, text: Option<String>| {
            if let Some(text) = text.filter(|_| !self.said.contains(&kind)) {
                self.said.push(kind);
                said.push(text);
            }
        };
        say(Kind::NoSignal, (self.without_signal >= WINDOW).then(|| no_signal(report, WINDOW)));
        say(Kind::Clipped, (self.clipped >= WINDOW).then(|| clip(report, clipped)));
        let moved = get(metric::K3).filter(|kl| *kl > FAR);
        say(Kind::Moved, moved.map(|kl| moved_far(report, kl, config)));
        let length = get(metric::TOKENS_MEAN);
        say(Kind::Shorter, self.first_length.fallen(length, SHORT).map(|(was, is)| {
            let step = report.step + 1;
            format!("answers became short: {was:.0} tokens an episode at first, {is:.0} in step {step}; if success fell too, the policy collapsed: go back to an earlier checkpoint and divide train.learning_rate by 10")
        }));
        // A policy that has learnt its task need not vary.
        let entropy = get(metric::ENTROPY).filter(|_| get(metric::SUCCESS_RATE) < Some(LEARNT));
        say(Kind::Collapsed, self.first_entropy.fallen(entropy, COLLAPSED).map(|(was, is)| {
            format!("the policy hardly varies any more: entropy {was:.2} nats at first, {is:.3} now; episodes of a group will be alike, so little more can be learnt: a smaller train.learning_rate keeps it longer")
        }));
        let skipped = get(metric::SKIPPED_UPDATES).filter(|n| *n > 0.0);
        say(Kind::Skipped, skipped.map(|n| {
            format!("{n:.0} updates were left out in step {}: their gradient was not finite; divide train.learning_rate by 3", report.step + 1)
        }));
        if self.steps <= WINDOW {
            self.first_length.add(length);
            self.first_entropy.add(entropy);
        }
        said
    }

    /// What is wrong with a whole run that was too short to be told so on the way.
    pub(crate) fn at_the_end(&self) -> Option<String> {
        (self.steps > 0 && self.with_signal == 0).then(|| {
            format!("nothing could be learnt: in none of {} steps did a group have different rewards; {EASIER}", self.steps)
        })
    }

    /// The texts, of those that begin alike only the first: numbers differ where a run was resumed.
    pub(crate) fn distinct(texts: impl Iterator<Item = String>) -> Vec<String> {
        let kind = |text: &str| {
            text.split(|c: char| c.is_ascii_digit() || c == ':').next().map(str::to_owned)
        };
        let mut kept: Vec<String> = Vec::new();
        for text in texts {
            if !kept.iter().any(|other| kind(other) == kind(&text)) {
                kept.push(text);
            }
        }
        kept
    }
}

const EASIER: &str =
    "make tasks easier, give partial rewards, raise rollout.group_size, or begin with a warm start";

fn no_signal(report: &StepReport, steps: u64) -> String {
    let none = report.metrics.get(metric::NONE_SOLVED_FRAC).unwrap_or(0.0);
    let all = report.metrics.get(metric::SOLVED_FRAC).unwrap_or(0.0);
    if all > none {
        return format!(
            "no group had different rewards for {steps} steps, and {:.0} % were solved by every member: nothing more can be learnt from these tasks; make them harder, or stop here",
            100.0 * all
        );
    }
    format!(
        "no group had different rewards for {steps} steps, and {:.0} % were solved by no member: nothing can be learnt; {EASIER}",
        100.0 * none
    )
}

fn clip(report: &StepReport, share: f64) -> String {
    let spread = report.metrics.get(metric::LOG_RATIO_STD).unwrap_or(0.0);
    format!(
        "clipping removes the gradient of {:.0} % of the tokens: the clip range is narrow beside the spread of the ratios, {spread:.1e}; try objective.clip_low = {:.1e} and objective.clip_high = {:.1e}",
        100.0 * share,
        2.0 * spread,
        // The paper's ratio of the upper to the lower bound (arXiv 2507.18071, section 5.1).
        2.0 * spread * 4.0 / 3.0
    )
}

fn moved_far(report: &StepReport, kl: f64, config: &Config) -> String {
    format!(
        "step {} moved the policy by {kl:.2} nats per token, and more than {FAR} often destroys it; go back to an earlier checkpoint with train.learning_rate = {:.0e}",
        report.step + 1,
        config.train.learning_rate / 10.0
    )
}

impl Mean {
    fn add(&mut self, value: Option<f64>) {
        if let Some(value) = value {
            self.sum += value;
            self.n += 1;
        }
    }

    /// The mean and the value, when little is left of the mean.
    fn fallen(self, value: Option<f64>, to: f64) -> Option<(f64, f64)> {
        let value = value?;
        let mean = self.sum / self.n as f64;
        (self.n > 0 && value < to * mean).then_some((mean, value))
    }
}
