use serde::{Deserialize, Serialize};

use crate::{Message, Seat, TurnRequest};

/// What the agent sees before it acts: the messages that are new since its last action.
///
/// Only new messages: earlier messages remain in the tokens in which the model saw them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// The new messages, oldest first; none of them is the agent's own, except in a whole conversation.
    pub messages: Vec<Message>,
    /// The seat that sees the messages and acts next.
    #[serde(default, skip_serializing_if = "Seat::is_first")]
    pub seat: Seat,
    /// Set if `messages` is a whole conversation, the agent's own messages included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Box<TurnRequest>>,
}

impl Observation {
    /// Creates an observation of several new messages.
    #[must_use]
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages, seat: Seat::default(), request: None }
    }

    /// Creates an observation that is a whole conversation.
    ///
    /// ```
    /// use turnwise_environment::{TurnRequest, Message, Observation};
    ///
    /// let said = vec![Message::user("1 + 1?"), Message::assistant("2"), Message::user("2 + 2?")];
    /// let observation = Observation::whole(said, TurnRequest::default());
    /// assert!(observation.request.is_some());
    /// ```
    #[must_use]
    pub fn whole(messages: Vec<Message>, request: TurnRequest) -> Self {
        Self { request: Some(Box::new(request)), ..Self::new(messages) }
    }

    /// Addresses the observation to a seat, which acts next.
    ///
    /// ```
    /// use turnwise_environment::{Observation, Seat};
    ///
    /// assert_eq!(Observation::from("Black moves.").to(Seat(1)).seat, Seat(1));
    /// ```
    #[must_use]
    pub fn to(self, seat: Seat) -> Self {
        Self { seat, ..self }
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
