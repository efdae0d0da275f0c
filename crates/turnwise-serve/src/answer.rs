//! What a program is answered, whichever surface it came by.

use turnwise_environment::{Action, CallAttempt, Message, ToolCall};
use turnwise_trajectory::StopReason;

/// A turn of the model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ChatAnswer {
    pub(crate) text: String,
    pub(crate) reasoning: Option<String>,
    pub(crate) calls: Vec<ToolCall>,
    /// The text at which the turn was to stop and did, which `text` has no more.
    pub(crate) stopped_at: Option<String>,
    pub(crate) turn: TurnReport,
}

/// What is known of a turn beside its text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TurnReport {
    pub(crate) stop: StopReason,
    /// The tokens of the prompt and of the turn.
    pub(crate) n_prompt: usize,
    pub(crate) n_sampled: usize,
    /// The texts and log-probabilities of the turn's tokens.
    pub(crate) tokens: Vec<(String, f32)>,
}

impl Default for TurnReport {
    fn default() -> Self {
        Self { stop: StopReason::EndOfTurn, n_prompt: 0, n_sampled: 0, tokens: Vec::new() }
    }
}

impl ChatAnswer {
    /// Makes an answer of an action. A call that cannot be read is text, as the model wrote it, because a program has to
    /// see it.
    pub(crate) fn new(action: &Action, turn: TurnReport, stop: &[String], request: u64) -> Self {
        let mut text = action.text.clone();
        let mut calls = Vec::new();
        for attempt in &action.calls {
            match attempt {
                CallAttempt::Call(call) => {
                    let id = unique_id(&call.id, request);
                    calls.push(ToolCall { id, ..call.clone() });
                }
                CallAttempt::Malformed(malformed) => {
                    if !text.is_empty() {
                        text.push('\n');
                    }
                    text.push_str(&malformed.raw);
                }
            }
        }
        // Programs split texts where they asked to stop, and expect not to find it.
        let found = stop.iter().filter_map(|stop| Some((text.find(stop.as_str())?, stop)));
        let first = found.min_by_key(|(place, _)| *place);
        let stopped_at = first.map(|(_, stop)| stop.clone());
        if let Some((end, _)) = first {
            text.truncate(end);
        }
        Self { text, reasoning: action.reasoning.clone(), calls, stopped_at, turn }
    }

    /// Returns the message as the program will send it again.
    pub(crate) fn message(&self) -> Message {
        Message { tool_calls: self.calls.clone(), ..Message::assistant(self.text.clone()) }
    }
}

/// Makes the id of a call unique in its session: models number the calls of each turn from 0, and programs find results by
/// their ids.
fn unique_id(id: &str, request: u64) -> String {
    format!("{id}{MARK}{request:x}")
}

const MARK: &str = "_t";

/// Returns the id that the model gave, from one that [`unique_id`] made.
pub(crate) fn own_id(id: &str) -> &str {
    match id.rsplit_once(MARK) {
        Some((own, request)) if is_hex(request) => own,
        _ => id,
    }
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use turnwise_environment::{CallError, MalformedCall};

    use super::*;

    fn call(id: &str) -> CallAttempt {
        let (name, arguments) = ("add".to_owned(), json!({"a": 1}));
        CallAttempt::Call(ToolCall { id: id.to_owned(), name, arguments })
    }

    #[test]
    fn ids_are_unique_among_turns_and_lead_back() {
        let action = Action { calls: vec![call("call_0"), call("call_1")], ..Action::default() };
        let ids = |request| -> Vec<String> {
            let answer = ChatAnswer::new(&action, TurnReport::default(), &[], request);
            answer.calls.into_iter().map(|call| call.id).collect()
        };
        let (first, second) = (ids(7), ids(26));
        assert!(first.iter().all(|id| !second.contains(id)));
        assert_eq!(second.iter().map(|id| own_id(id)).collect::<Vec<_>>(), ["call_0", "call_1"]);
        assert_eq!(own_id("toolu_theirs"), "toolu_theirs");
    }

    #[test]
    fn a_text_ends_before_where_it_was_to_stop_and_shows_what_could_not_be_read() {
        let malformed = MalformedCall {
            id: "call_0".to_owned(),
            raw: "<tool_call>{oops".to_owned(),
            error: CallError::Decode,
            message: "not JSON".to_owned(),
        };
        let action = Action {
            calls: vec![CallAttempt::Malformed(malformed)],
            ..Action::text("Thought. Observation: 5")
        };
        let stop = ["Observation:".to_owned()];
        let answer = ChatAnswer::new(&action, TurnReport::default(), &stop, 1);
        assert_eq!(answer.text, "Thought. ");
        assert_eq!(answer.stopped_at.as_deref(), Some("Observation:"));
        let answer = ChatAnswer::new(&action, TurnReport::default(), &[], 1);
        assert_eq!(answer.text, "Thought. Observation: 5\n<tool_call>{oops");
    }
}
