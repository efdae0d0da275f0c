//! Episodes as text for people: a heading, the conversation, rewards and faults of each turn, and the ending.

use turnwise_environment::{Message, Role};
use turnwise_trajectory::{
    AgentFault, Author, Limit, MessageGraph, NodeId, Outcome, StopReason, Trajectory, Turn,
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

/// Iterates over the messages that answered a turn. Where a template rewrote history, they follow a copy of the turn.
pub fn answers(episode: &Trajectory, turn: NodeId) -> impl Iterator<Item = &Message> {
    let mut last = turn;
    episode.graph.ids().filter_map(move |id| {
        let node = episode.graph.node(id);
        if last == turn && stands_for(&episode.graph, id, turn) {
            last = id;
        }
        let is_next = node.parent == Some(last) && node.author != Author::Policy;
        is_next.then(|| {
            last = id;
            &node.message
        })
    })
}

/// Returns whether a node has the message of an original: it is the original, or its copy on a branch that began when
/// a template rewrote history. A copy stands as deep in its branch as the original.
fn stands_for(graph: &MessageGraph, id: NodeId, original: NodeId) -> bool {
    let is_same = || {
        let [one, other] = [id, original].map(|id| graph.node(id));
        one.author == other.author && one.message == other.message
    };
    let depth = |id: NodeId| graph.path_to(id).len();
    id == original || (original < id && is_same() && depth(id) == depth(original))
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
/// faults, below a message that the model saw in part is a remark, and the last line says how the episode ended. Control
/// characters are removed.
#[must_use]
pub fn conversation(episode: &Trajectory, width: usize) -> Vec<String> {
    let mut page = Vec::new();
    let Some(leaf) = episode.graph.ids().last() else { return page };
    for id in episode.graph.path_to(leaf) {
        let message = &episode.graph.node(id).message;
        if let Some(thought) = &message.reasoning {
            say(&mut page, "thinks", thought, width);
        }
        let is_of = |original: &NodeId| stands_for(&episode.graph, id, *original);
        let turn = episode.turns.iter().rposition(|turn| is_of(&turn.node));
        let text = match turn {
            Some(number) => said_in(&episode.turns[number], message),
            None if message.role == Role::Assistant => spoken(message),
            None => message.content.clone(),
        };
        say(&mut page, speaker(message.role), &text, width);
        if episode.graph.shortened().iter().any(is_of) {
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

    /// Adds the path up to a node once more, as a template does that writes history without thoughts; returns
    /// the last copy.
    fn copied(episode: &mut Trajectory, until: NodeId) -> NodeId {
        let mut parent = Some(NodeId(0));
        for id in episode.graph.path_to(until).into_iter().skip(1) {
            let mut copy = episode.graph.node(id).clone();
            copy.parent = parent;
            parent = Some(episode.graph.push(copy));
        }
        parent.expect("a path has a node")
    }

    #[test]
    fn a_rewritten_history_changes_neither_what_is_shown_nor_what_answered_a_turn() {
        let thought = |text: &str, faults: u32, reply: &str| {
            let mut turn = Played { faults, ..said(text, 0.0, reply) };
            turn.said.reasoning = Some("Let me think.".to_owned());
            turn
        };
        let turns = [
            thought("twenty", 1, "Answer with a number."),
            // The same answer again, which is another turn.
            thought("twenty", 1, "Answer with a number, I say."),
            thought("20", 0, "lower"),
        ];
        let mut straight = episode(0, "Guess 1-40 in 6.", &turns);
        straight.graph.mark_shortened(NodeId(2));
        // Each reply follows a copy of the whole history.
        let mut rewritten = episode(0, "Guess 1-40 in 6.", &[]);
        let mut last = NodeId(0);
        for turn in &straight.turns {
            let mut said = straight.graph.node(turn.node).clone();
            said.parent = Some(last);
            let node = rewritten.graph.push(said);
            rewritten.turns.push(Turn { node, ..turn.clone() });
            let copy = copied(&mut rewritten, node);
            let mut reply = straight.graph.node(NodeId(turn.node.0 + 1)).clone();
            reply.parent = Some(copy);
            last = rewritten.graph.push(reply);
            if rewritten.turns.len() == 1 {
                rewritten.graph.mark_shortened(last);
            }
        }
        let page = conversation(&rewritten, 100).join("\n");
        assert_eq!(page.matches("1 malformed)").count(), 2, "{page}");
        assert_eq!(page.matches(SHORTENED).count(), 1, "{page}");
        let until_the_end = |episode: &Trajectory| {
            let page = conversation(episode, 100);
            page[..page.len() - 1].to_vec()
        };
        assert_eq!(until_the_end(&rewritten), until_the_end(&straight));
        for (one, other) in rewritten.turns.iter().zip(&straight.turns) {
            let [one, other]: [Vec<&Message>; 2] =
                [answers(&rewritten, one.node).collect(), answers(&straight, other.node).collect()];
            assert_eq!(one, other);
            assert_eq!(one.len(), 1);
        }
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
