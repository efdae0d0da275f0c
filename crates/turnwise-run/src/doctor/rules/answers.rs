//! Answers that are cut, and answers that cannot be read.

use std::collections::BTreeMap;

use turnwise_training::metric::{self, Metric};
use turnwise_trajectory::{NodeId, StopReason, Trajectory, Turn};

use crate::chat::{self, said_in};
use crate::doctor::evidence::{Evidence, mean, n_episodes, share, which};
use crate::doctor::finding::{Finding, Severity};
use crate::text::{fit, one_line};

/// The share of turns from which a fault of answers is a finding.
const MANY: f64 = 0.2;

/// The share from which it stops learning.
const MOST: f64 = 0.5;

/// The beginning of a tool's complaint.
const ERROR: &str = "error: ";

/// The number of examples, and the longest.
const EXAMPLES: usize = 3;
const WIDTH: usize = 100;

/// A share of turns: measured in all episodes of the last steps, or counted in the episodes that the run kept.
struct TurnShare {
    rate: f64,
    /// The number of episodes, each of which is one independent observation.
    n: f64,
    place: String,
}

impl TurnShare {
    fn describe(&self) -> String {
        format!("{} of the turns in {}", share(self.rate, self.n), self.place)
    }
}

/// Returns the share of turns with a property from a metric, or, in a run whose log lacks it, from the kept episodes.
fn share_of_turns(
    evidence: &Evidence,
    metric: Metric,
    has: impl Fn(&Turn) -> bool,
) -> Option<TurnShare> {
    let steps = evidence.recent()?;
    if let Some(rate) = mean(steps, metric) {
        return Some(TurnShare { rate, n: n_episodes(steps), place: which(steps) });
    }
    let turns = || evidence.episodes.iter().flat_map(|(_, episode)| &episode.turns);
    let n_turns = turns().count();
    let n = turns().filter(|turn| has(turn)).count();
    (n_turns > 0).then(|| TurnShare {
        rate: n as f64 / n_turns as f64,
        n: evidence.episodes.len() as f64,
        place: format!("{} kept episodes", evidence.episodes.len()),
    })
}

/// Returns how bad a share of faulty turns is: a run that learns in spite of it could learn faster.
fn severity(evidence: &Evidence, rate: f64) -> Severity {
    Severity::stops_if(rate >= MOST && !evidence.has_learnt())
}

pub(super) fn answers_are_cut(evidence: &Evidence) -> Option<Finding> {
    let limits = &evidence.config.limits;
    let is_cut = |turn: &Turn| turn.stop == StopReason::MaxTokens;
    let cut = share_of_turns(evidence, metric::CUT_TURNS_FRAC, is_cut)?;
    let full = mean(evidence.recent()?, metric::CONTEXT_FRAC).unwrap_or(0.0);
    if cut.rate.max(full) < MANY || evidence.is_solved() {
        return None;
    }
    let (problem, change) = if full >= MANY {
        let share = share(full, cut.n);
        let n = limits.max_context_tokens;
        (
            format!(
                "{share} of the episodes in {} ended because the context of {n} tokens was full",
                cut.place
            ),
            format!("limits.max_context_tokens = {}, or rollout.compaction", 2 * n),
        )
    } else {
        let n = limits.max_turn_tokens;
        (
            format!("answers are cut: {} reached limits.max_turn_tokens = {n}", cut.describe()),
            format!("limits.max_turn_tokens = {}", (4 * n).max(16)),
        )
    };
    Some(Finding {
        rule: "answers_are_cut",
        severity: severity(evidence, cut.rate.max(full)),
        problem,
        change,
        examples: examples(evidence, is_cut, |_| String::new()),
    })
}

pub(super) fn answers_cannot_be_read(evidence: &Evidence) -> Option<Finding> {
    let is_malformed = |turn: &Turn| turn.faults > 0;
    let malformed = share_of_turns(evidence, metric::MALFORMED_TURNS_FRAC, is_malformed)?;
    if malformed.rate < MANY || evidence.is_solved() {
        return None;
    }
    let reason = most_frequent_reason(evidence)
        .map_or_else(String::new, |reason| format!("; the most frequent reason: {reason}"));
    Some(Finding {
        rule: "answers_cannot_be_read",
        severity: severity(evidence, malformed.rate),
        problem: format!(
            "{} had an answer or a call that the environment could not read{reason}",
            malformed.describe()
        ),
        change: "show the form in the environment's instructions, imitate an expert first (warm_start.steps), or allow nothing else (rollout.constraint)".to_owned(),
        examples: examples(evidence, is_malformed, |complaint| format!(" -> {complaint}")),
    })
}

/// Returns the kind of complaint that the environment made most often, as its first complaint of this kind, with the
/// number of turns that it was made about.
fn most_frequent_reason(evidence: &Evidence) -> Option<String> {
    let mut complaints: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (_, episode) in &evidence.episodes {
        for turn in episode.turns.iter().filter(|turn| turn.faults > 0) {
            let complaint = complaint(episode, turn.node);
            complaints.entry(kind(&complaint)).or_default().push(complaint);
        }
    }
    let n: usize = complaints.values().map(Vec::len).sum();
    // Among equals, the first in alphabetical order.
    let most = complaints.into_values().rev().max_by_key(Vec::len)?;
    let first = fit(&most[0], WIDTH);
    Some(format!("\"{first}\", {} of {n} times in the kept episodes", most.len()))
}

/// Returns what the environment answered to a turn: an error if there is one among its messages.
fn complaint(episode: &Trajectory, node: NodeId) -> String {
    let answers: Vec<String> =
        chat::answers(episode, node).map(|message| one_line(&message.content)).collect();
    let error = answers.iter().find(|answer| answer.starts_with(ERROR));
    error.or(answers.first()).cloned().unwrap_or_else(|| episode.outcome.label())
}

/// Returns the part of a complaint that complaints of one kind share: that of a tool is `error: KIND: details`.
fn kind(complaint: &str) -> String {
    match complaint.strip_prefix(ERROR).and_then(|rest| rest.split_once(':')) {
        Some((kind, _)) => kind.to_owned(),
        None => complaint.to_owned(),
    }
}

/// Returns the first such turn of each of the newest episodes, as excerpts.
fn examples(
    evidence: &Evidence,
    has: impl Fn(&Turn) -> bool,
    after: impl Fn(&str) -> String,
) -> Vec<String> {
    let turns = evidence.episodes.iter().filter_map(|(file, episode)| {
        let turn = episode.turns.iter().find(|turn| has(turn))?;
        Some((file, episode, turn))
    });
    let describe = |(file, episode, turn): (&String, &Trajectory, &Turn)| {
        let message = &episode.graph.node(turn.node).message;
        let said = one_line(&said_in(turn, message));
        let answer = after(&complaint(episode, turn.node));
        let task = episode.identity.task_index;
        format!("{file}, task {task}: {}", fit(&format!("{said}{answer}"), WIDTH))
    };
    turns.take(EXAMPLES).map(describe).collect()
}
