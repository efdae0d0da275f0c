use serde::{Deserialize, Serialize};

use crate::Message;

/// What the agent sees before it acts: the messages that are new since its last action.
///
/// Only new messages: earlier messages remain in the tokens in which the model saw them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// The new messages, oldest first; none of them is the agent's own.
    pub messages: Vec<Message>,
}

impl Observation {
    /// Creates an observation of several new messages.
    #[must_use]
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages }
    }
}

impl From<&str> for Observation {
    /// Creates an observation of one user message.
    fn from(text: &str) -> Self {
        Self::new(vec![Message::user(text)])
    }
}

impl From<String> for Observation {
    /// Creates an observation of one user message.
    fn from(text: String) -> Self {
        Self::new(vec![Message::user(text)])
    }
}

impl From<Vec<Message>> for Observation {
    fn from(messages: Vec<Message>) -> Self {
        Self::new(messages)
    }
}
