//! Warnings about a run that follow from its metrics.

use serde_json::Value;
use turnwise_training::metric::{self, Metric, MetricValues};

use crate::config::Config;

/// Reads the metrics of each step and warns about the run in words, once for each kind of problem.
#[derive(Debug, Default)]
pub(crate) struct Advice {
    steps: u64,
    /// Steps since a group had different rewards.
    without_signal: u64,
    /// Steps in a row in which clipping removed most gradients.
    clipped: u64,
    /// Steps with groups of different rewards, since the process began.
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

/// The number of steps over which the start is measured, and for which a problem has to last.
const WINDOW: u64 = 5;
/// The fraction of clipped tokens above which little is left to learn from.
const MUCH_CLIPPED: f64 = 0.8;
/// The largest change of the policy in one step, in nats per token. At a learning rate of 1e-3 in full fine-tuning, a
/// model of 135M weights moved by 1.05 and was destroyed; the small models of `turnwise try` move by up to 0.3 and
/// learn.
const FAR: f64 = 0.5;
/// The fraction of the first episode length below which the policy has collapsed.
const SHORT: f64 = 0.2;
/// The fraction of the first entropy below which the policy has collapsed. A policy that has learnt a game keeps a
/// fifth.
const COLLAPSED: f64 = 0.05;

/// The success rate from which a task counts as learnt.
const LEARNT: f64 = 0.9;

impl Advice {
    /// Returns the new warnings, as sentences.
    pub(crate) fn read(&mut self, step: &StepMetrics<'_>, config: &Config) -> Vec<String> {
        let get = |metric: Metric| step.get(metric);
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
        say(Kind::NoSignal, (self.without_signal >= WINDOW).then(|| no_signal(step, WINDOW)));
        say(Kind::Clipped, (self.clipped >= WINDOW).then(|| clip(step, clipped)));
        let moved = get(metric::K3).filter(|kl| *kl > FAR);
        say(Kind::Moved, moved.map(|kl| moved_far(step, kl, config)));
        let length = get(metric::TOKENS_MEAN);
        say(Kind::Shorter, self.first_length.fallen(length, SHORT).map(|(was, is)| {
            let number = step.number + 1;
            format!("answers became short: {was:.0} tokens an episode at first, {is:.0} in step {number}; if success fell too, the policy collapsed: go back to an earlier checkpoint and divide train.learning_rate by 10")
        }));
        // A policy that has learnt its task need not vary.
        let entropy = get(metric::ENTROPY).filter(|_| get(metric::SUCCESS_RATE) < Some(LEARNT));
        say(Kind::Collapsed, self.first_entropy.fallen(entropy, COLLAPSED).map(|(was, is)| {
            format!("the policy hardly varies any more: entropy {was:.2} nats at first, {is:.3} now; episodes of a group will be alike, so little more can be learnt: a smaller train.learning_rate keeps it longer")
        }));
        let skipped = get(metric::SKIPPED_UPDATES).filter(|n| *n > 0.0);
        say(Kind::Skipped, skipped.map(|n| {
            format!("{n:.0} updates were left out in step {}: their gradient was not finite; divide train.learning_rate by 3", step.number + 1)
        }));
        if self.steps <= WINDOW {
            self.first_length.add(length);
            self.first_entropy.add(entropy);
        }
        said
    }

    /// Returns the warnings about a whole run from the lines of its log; they do not depend on stops and resumptions.
    pub(crate) fn of_run(rows: &[Value], config: &Config) -> Vec<String> {
        let mut advice = Self::default();
        let mut said: Vec<String> =
            rows.iter().flat_map(|row| advice.read(&StepMetrics::of_row(row), config)).collect();
        let is_told = advice.said.contains(&Kind::NoSignal);
        if advice.steps > 0 && advice.with_signal == 0 && !is_told {
            let steps = advice.steps;
            said.push(format!("nothing could be learnt: in none of {steps} steps did a group have different rewards; {EASIER}"));
        }
        said
    }
}

/// The metrics of a step, as measured or as read from the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepMetrics<'a> {
    number: u64,
    numbers: Numbers<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Numbers<'a> {
    Measured(&'a MetricValues),
    Written(&'a Value),
}

impl<'a> StepMetrics<'a> {
    pub(crate) fn measured(number: u64, metrics: &'a MetricValues) -> Self {
        Self { number, numbers: Numbers::Measured(metrics) }
    }

    /// Reads a line of `metrics.jsonl`.
    pub(crate) fn of_row(row: &'a Value) -> Self {
        Self { number: row["step"].as_u64().unwrap_or(0), numbers: Numbers::Written(row) }
    }

    fn get(&self, metric: Metric) -> Option<f64> {
        match self.numbers {
            Numbers::Measured(metrics) => metrics.get(metric),
            Numbers::Written(row) => row[metric.name].as_f64(),
        }
    }
}

const EASIER: &str =
    "make tasks easier, give partial rewards, raise rollout.group_size, or begin with a warm start";

fn no_signal(step: &StepMetrics<'_>, steps: u64) -> String {
    let none = step.get(metric::NONE_SOLVED_FRAC).unwrap_or(0.0);
    let all = step.get(metric::SOLVED_FRAC).unwrap_or(0.0);
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

fn clip(step: &StepMetrics<'_>, share: f64) -> String {
    let spread = step.get(metric::LOG_RATIO_STD).unwrap_or(0.0);
    format!(
        "clipping removes the gradient of {:.0} % of the tokens: the clip range is narrow beside the spread of the ratios, {spread:.1e}; try objective.clip_low = {:.1e} and objective.clip_high = {:.1e}",
        100.0 * share,
        2.0 * spread,
        // The paper's ratio of the upper to the lower bound (arXiv 2507.18071, section 5.1).
        2.0 * spread * 4.0 / 3.0
    )
}

fn moved_far(step: &StepMetrics<'_>, kl: f64, config: &Config) -> String {
    format!(
        "step {} moved the policy by {kl:.2} nats per token, and more than {FAR} often destroys it; go back to an earlier checkpoint with train.learning_rate = {:.0e}",
        step.number + 1,
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

    /// Returns the mean and the value, if the value is below the fraction `to` of the mean.
    fn fallen(self, value: Option<f64>, to: f64) -> Option<(f64, f64)> {
        let value = value?;
        let mean = self.sum / self.n as f64;
        (self.n > 0 && value < to * mean).then_some((mean, value))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Returns the warnings about a run with good metrics except for `wrong`, from the third step on.
    fn said(wrong: &Value) -> Vec<String> {
        let rows: Vec<Value> = (0..10)
            .map(|step| {
                let mut row = json!({
                    "step": step, "group/mixed_frac": 0.5, "group/none_solved_frac": 0.4,
                    "group/all_solved_frac": 0.1, "objective/clip_frac": 0.2, "objective/k3_mean": 1e-3,
                    "objective/log_ratio_std": 0.01, "length/sampled_mean": 90.0,
                    "policy/entropy_mean": 1.5, "reward/success_rate": 0.4, "train/skipped_count": 0.0,
                });
                if step >= 3 {
                    let wrong = wrong.as_object().cloned().unwrap_or_default();
                    row.as_object_mut().expect("an object").extend(wrong);
                }
                row
            })
            .collect();
        Advice::of_run(&rows, &Config::default())
    }

    #[test]
    fn a_good_run_gets_no_advice() {
        assert_eq!(said(&json!({})), [""; 0]);
        // A policy that has learnt its task need not vary.
        assert_eq!(
            said(&json!({"policy/entropy_mean": 0.01, "reward/success_rate": 0.98})),
            [""; 0]
        );
    }

    #[test]
    fn each_thing_that_goes_wrong_is_said_once() {
        let cases = [
            (json!({"group/mixed_frac": 0.0}), "40 % were solved by no member"),
            (
                json!({"group/mixed_frac": 0.0, "group/all_solved_frac": 0.9}),
                "90 % were solved by every member",
            ),
            (json!({"objective/clip_frac": 0.95}), "objective.clip_low = 2.0e-2"),
            (json!({"objective/k3_mean": 1.05}), "step 4 moved the policy by 1.05 nats"),
            (json!({"length/sampled_mean": 7.0}), "90 tokens an episode at first, 7 in step 4"),
            (json!({"policy/entropy_mean": 0.02}), "entropy 1.50 nats at first, 0.020 now"),
            (json!({"train/skipped_count": 2.0}), "2 updates were left out in step 4"),
        ];
        for (wrong, expected) in cases {
            let said = said(&wrong);
            assert_eq!(said.len(), 1, "{wrong}: {said:?}");
            assert!(said[0].contains(expected), "{wrong}: {said:?}");
        }
    }
}
