//! Episodes as text for people: a heading, the conversation, rewards and faults of each turn, and the ending.

use turnwise_environment::{Message, Role};
use turnwise_trajectory::{
    AgentFault, Author, Limit, NodeId, Outcome, StopReason, Trajectory, Turn,
};

use crate::text::{lines, one_line, wrap};

/// The width of the speaker's column.
pub const SPEAKER: usize = 8;

/// The remark below a message that the renderer shortened.
const SHORTENED: &str = "(the model saw it without its middle: model.max_observation_tokens)";

/// Returns the word for a speaker.
#[must_use]
pub fn speaker(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "env",
        Role::Assistant => "agent",
        Role::Tool => "tool",
    }
}

/// Returns the text and the calls of a message.
#[must_use]
pub fn spoken(message: &Message) -> String {
    let calls = message.tool_calls.iter().map(|call| format!("{}({})", call.name, call.arguments));
    let text = Some(message.content.clone()).filter(|text| !text.trim().is_empty());
    let parts: Vec<String> = text.into_iter().chain(calls).collect();
    if parts.is_empty() { "(nothing)".to_owned() } else { parts.join(" ") }
}

/// Returns what the agent said in a turn, as [`spoken`]. A message has no text for an empty answer, and for a call that
/// cannot be read.
#[must_use]
pub fn said_in(turn: &Turn, message: &Message) -> String {
    let is_unreadable =
        turn.faults > 0 && message.content.trim().is_empty() && message.tool_calls.is_empty();
    if is_unreadable { "(nothing that can be read)".to_owned() } else { spoken(message) }
}

/// Iterates over the messages that answered a turn.
pub fn answers(episode: &Trajectory, turn: NodeId) -> impl Iterator<Item = &Message> {
    let mut last = turn;
    episode.graph.ids().filter_map(move |id| {
        let node = episode.graph.node(id);
        let is_next = node.parent == Some(last) && node.author != Author::Policy;
        is_next.then(|| {
            last = id;
            &node.message
        })
    })
}

/// Returns the heading of an episode: task, result, reward, and number of turns.
///
/// ```text
/// guess task 118 (3f…): solved, reward 1.00 in 3 turns
/// ```
#[must_use]
pub fn heading(episode: &Trajectory) -> String {
    let identity = &episode.identity;
    let seat = match episode.seat {
        seat if seat.is_first() => String::new(),
        seat => format!(" seat {seat}"),
    };
    let task = format!(
        "{} task {} ({}){seat}",
        identity.environment,
        identity.task_index,
        identity.task.as_str()
    );
    one_line(&format!("{task}: {}", result(episode)))
}

/// Returns the result of an episode: `solved, reward 1.00 in 3 turns`.
#[must_use]
pub fn result(episode: &Trajectory) -> String {
    let solved = if episode.solved { "solved" } else { "not solved" };
    let reward = reward(episode.reward());
    let n = episode.turns.len();
    let turns = if n == 1 { "turn" } else { "turns" };
    format!("{solved}, {reward} in {n} {turns}")
}

fn reward(reward: Option<f64>) -> String {
    reward.map_or_else(|| "not scored".to_owned(), |reward| format!("reward {reward:.2}"))
}

/// Returns the conversation along its newest branch, at most `width` columns wide; below each turn are its reward and
/// faults, below a message that the model saw in part is a remark, and the last line says how the episode ended. Control characters are removed.
#[must_use]
pub fn conversation(episode: &Trajectory, width: usize) -> Vec<String> {
    let mut page = Vec::new();
    let Some(leaf) = episode.graph.ids().last() else { return page };
    for id in episode.graph.path_to(leaf) {
        let message = &episode.graph.node(id).message;
        if let Some(thought) = &message.reasoning {
            say(&mut page, "thinks", thought, width);
        }
        let turn = episode.turns.iter().position(|turn| turn.node == id);
        let text = match turn {
            Some(number) => said_in(&episode.turns[number], message),
            None if message.role == Role::Assistant => spoken(message),
            None => message.content.clone(),
        };
        say(&mut page, speaker(message.role), &text, width);
        if episode.graph.shortened().contains(&id) {
            say(&mut page, "", SHORTENED, width);
        }
        if let Some(number) = turn {
            say(&mut page, "", &remark(number, &episode.turns[number]), width);
        }
    }
    say(&mut page, "end", &ending(episode), width);
    page
}

/// Adds a text with its speaker to a page.
fn say(page: &mut Vec<String>, who: &str, text: &str, width: usize) {
    let mut who = who;
    for line in lines(text) {
        for part in wrap(&line, width.saturating_sub(SPEAKER)) {
            page.push(format!("{who:SPEAKER$}{part}").trim_end().to_owned());
            who = "";
        }
    }
    if !who.is_empty() {
        page.push(who.to_owned());
    }
}

/// Describes a turn: `(turn 2, reward 0.00, 1 malformed)`.
fn remark(number: usize, turn: &Turn) -> String {
    let mut parts = vec![format!("turn {}", number + 1)];
    parts.extend(turn.total_reward().map(|value| reward(Some(value))));
    if turn.faults > 0 {
        parts.push(format!("{} malformed", turn.faults));
    }
    if turn.stop == StopReason::MaxTokens {
        parts.push("cut at the limit of tokens".to_owned());
    }
    format!("({})", parts.join(", "))
}

/// Describes how an episode ended.
fn ending(episode: &Trajectory) -> String {
    let how = match &episode.outcome {
        Outcome::Done => "the environment ended it",
        Outcome::Truncated(limit) => limit_of(*limit),
        Outcome::AgentFault(AgentFault::FaultBudget) => {
            "too many malformed answers (limits.max_faults)"
        }
        Outcome::AgentFault(AgentFault::Empty) => "an empty answer",
        Outcome::InfraFault(fault) => return format!("it broke: {fault}"),
        Outcome::Cancelled(_) => "it was cancelled",
    };
    format!("{how}: {}", result(episode))
}

fn limit_of(limit: Limit) -> &'static str {
    match limit {
        Limit::Turns => "no turns were left (limits.max_turns)",
        Limit::SampledTokens => "no tokens were left (limits.max_sampled_tokens)",
        Limit::Context => "the context was full (limits.max_context_tokens)",
        Limit::ToolCalls => "no tool calls were left (limits.max_tool_calls)",
        Limit::Loop => "it repeated itself (limits.max_repeats)",
        Limit::Environment => "the environment cut it off",
        Limit::OtherSeat => "another seat ran into a limit",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use turnwise_environment::Action;

    use super::*;
    use crate::fixture::{Played, episode, said};
    use crate::text::columns;

    #[test]
    fn a_conversation_has_the_reward_and_the_faults_of_each_turn_and_its_ending() {
        let malformed = Played {
            faults: 1,
            reward: None,
            stop: StopReason::MaxTokens,
            ..said("I would say twenty", 0.0, "Answer with a number.")
        };
        let called = Played {
            said: Action::call("guess", json!({"n": 15})).to_message(),
            ..said("", 1.0, "right")
        };
        let played = episode(0, "Guess 1-40 in 6.", &[malformed, said("20", 0.0, "lower"), called]);
        let expected = [
            "env     Guess 1-40 in 6.",
            "agent   I would say twenty",
            "        (turn 1, 1 malformed, cut at the limit of tokens)",
            "env     Answer with a number.",
            "agent   20",
            "        (turn 2, reward 0.00)",
            "env     lower",
            "agent   guess({\"n\":15})",
            "        (turn 3, reward 1.00)",
            "env     right",
            "end     the environment ended it: solved, reward 1.00 in 3 turns",
        ];
        assert_eq!(conversation(&played, 80), expected);
        assert!(heading(&played).starts_with("guess task 3 ("));
        assert!(heading(&played).ends_with("): solved, reward 1.00 in 3 turns"));
    }

    #[test]
    fn a_message_that_the_model_saw_in_part_says_so() {
        let mut played = episode(0, "Guess 1-40 in 6.", &[said("20", 0.0, "lower")]);
        played.graph.mark_shortened(NodeId(2));
        let page = conversation(&played, 100);
        let below = page.iter().position(|line| line == "env     lower").expect("a message") + 1;
        assert_eq!(page[below].trim_start(), SHORTENED);
        assert_eq!(page.iter().filter(|line| line.contains(SHORTENED)).count(), 1);
    }

    #[test]
    fn foreign_text_stays_in_its_lines() {
        let hostile = "\u{1b}[2J\u{202e}数字 and a long line\n".repeat(30);
        let played = episode(0, &hostile, &[said(&hostile, 0.0, &hostile)]);
        for width in 12..90 {
            let page = conversation(&played, width);
            assert!(page.iter().all(|line| columns(line) <= width), "{width}: {page:?}");
            assert!(!page.concat().contains(['\u{1b}', '\u{202e}']));
        }
    }
}
