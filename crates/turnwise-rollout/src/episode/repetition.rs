use serde::{Deserialize, Serialize};
use turnwise_environment::{Action, CallAttempt, Observation};

use super::digest::digest;

/// How often in a row the agent did the same and was answered the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Repetition {
    last: String,
    times: u32,
}

impl Repetition {
    /// Sees one more exchange and answers how often it has now come in a row.
    pub(super) fn see(&mut self, said: &str, answered: &Observation) -> u32 {
        let contents: Vec<&str> =
            answered.messages.iter().map(|message| message.content.as_str()).collect();
        let seen = digest(&(said, contents));
        self.times = if seen == self.last { self.times.saturating_add(1) } else { 1 };
        self.last = seen;
        self.times
    }
}

/// What an action says and calls. Thinking and the ids of calls may differ from turn to turn without it being another.
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
