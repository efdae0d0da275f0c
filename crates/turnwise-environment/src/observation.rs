use serde::{Deserialize, Serialize};

use crate::Message;

/// What the agent is shown before it acts: the messages that are new since its last action.
///
/// Only new messages: what was said before stays as it was, in the tokens the model saw it in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// The new messages, oldest first; none of them is the agent's own.
    pub messages: Vec<Message>,
}

impl Observation {
    /// Several new messages.
    #[must_use]
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages }
    }
}

impl From<&str> for Observation {
    /// One user message.
    fn from(text: &str) -> Self {
        Self::new(vec![Message::user(text)])
    }
}

impl From<String> for Observation {
    /// One user message.
    fn from(text: String) -> Self {
        Self::new(vec![Message::user(text)])
    }
}

impl From<Vec<Message>> for Observation {
    fn from(messages: Vec<Message>) -> Self {
        Self::new(messages)
    }
}
