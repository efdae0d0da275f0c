//! Messages of which the model sees only a part.

use turnwise_training::metric;

use crate::doctor::evidence::{Evidence, mean, n_episodes, share, which};
use crate::doctor::finding::{Finding, Severity};
use crate::text::{fit, one_line};

/// The number of examples, and the longest.
const EXAMPLES: usize = 3;
const WIDTH: usize = 100;

pub(super) fn observations_are_shortened(evidence: &Evidence) -> Option<Finding> {
    let steps = evidence.recent()?;
    let rate = mean(steps, metric::SHORTENED_FRAC).filter(|rate| *rate > 0.0)?;
    let n = evidence.config.model.max_observation_tokens;
    let context = evidence.config.limits.max_context_tokens;
    // A message and its answer have to fit the context.
    let room = if 2 * n < context {
        String::new()
    } else {
        format!(" and limits.max_context_tokens = {}", 4 * n)
    };
    (!evidence.is_solved()).then(|| Finding {
        rule: "observations_are_shortened",
        severity: Severity::Slows,
        problem: format!(
            "the model did not see the middle of messages in {} of the episodes in {}: they are longer than model.max_observation_tokens = {n}",
            share(rate, n_episodes(steps)),
            which(steps)
        ),
        change: format!(
            "model.max_observation_tokens = {}{room}, or shorter messages of the environment",
            2 * n
        ),
        examples: examples(evidence),
    })
}

/// Returns the first shortened message of each of the newest episodes that have one.
fn examples(evidence: &Evidence) -> Vec<String> {
    let shortened = evidence.episodes.iter().filter_map(|(file, episode)| {
        let node = episode.graph.shortened().first()?;
        let text = &episode.graph.node(*node).message.content;
        let task = episode.identity.task_index;
        let start = fit(&one_line(text), WIDTH);
        Some(format!("{file}, task {task}, {} bytes: {start}", text.len()))
    });
    shortened.take(EXAMPLES).collect()
}
