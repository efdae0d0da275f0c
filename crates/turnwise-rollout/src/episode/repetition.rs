use serde::{Deserialize, Serialize};
use turnwise_environment::{Action, CallAttempt, Observation};

use super::digest::digest;

/// Counts how often in a row the agent repeated an action and got the same answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Repetition {
    last: String,
    times: u32,
}

impl Repetition {
    /// Records one exchange and returns how often in a row it has now occurred.
    pub(super) fn see(&mut self, said: &str, answered: &Observation) -> u32 {
        let contents: Vec<&str> =
            answered.messages.iter().map(|message| message.content.as_str()).collect();
        let seen = digest(&(said, contents));
        self.times = if seen == self.last { self.times.saturating_add(1) } else { 1 };
        self.last = seen;
        self.times
    }
}

/// Returns the text and calls of an action. Thinking and call ids are left out, because they may differ between
/// repetitions.
pub(super) fn said(action: &Action) -> String {
    let calls: Vec<(&str, String)> = action
        .calls
        .iter()
        .map(|attempt| match attempt {
            CallAttempt::Call(call) => (call.name.as_str(), call.arguments.to_string()),
            CallAttempt::Malformed(call) => ("", call.raw.clone()),
        })
        .collect();
    digest(&(&action.text, calls))
}
