use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Who speaks in a conversation, in the terms of chat templates.
///
/// A role is not an author: an assistant message may have been written by a person or another model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions above the conversation.
    System,
    /// The environment, in the role of a user.
    User,
    /// The agent.
    Assistant,
    /// The result of a tool call.
    Tool,
}

/// One message of a conversation: text, never tokens.
///
/// Images, sounds and other parts that are not text cannot be represented; reading a record that has any fails.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// The speaker.
    pub role: Role,
    /// The text.
    pub content: String,
    /// The agent's thinking, if a template keeps it apart from the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// The calls of an assistant message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call that a tool message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    /// Creates a message that is only text.
    #[must_use]
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
            reasoning: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
        }
    }

    /// Creates instructions above the conversation.
    #[must_use]
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }

    /// Creates a message of the environment.
    #[must_use]
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// Creates a message of the agent.
    #[must_use]
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }

    /// Creates the answer to the call `id`.
    #[must_use]
    pub fn tool(id: impl Into<String>, content: impl Into<String>) -> Self {
        Self { tool_call_id: Some(id.into()), ..Self::new(Role::Tool, content) }
    }
}

/// A tool call that could be read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The call's id, unique within the action; the answer carries the id.
    pub id: String,
    /// The tool's name as the agent wrote it; it may not exist.
    pub name: String,
    /// The arguments as the agent wrote them; they may not fit the tool's schema.
    pub arguments: Value,
}

/// Why a tool call was answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallError {
    /// No tool has that name.
    NotFound,
    /// The call is not well-formed JSON, or a tag is not closed.
    Decode,
    /// The arguments do not fit the tool.
    InvalidArgs,
    /// The call is longer than the limit.
    TooLarge,
    /// The tool exceeded its time limit on this call.
    Timeout,
}

impl CallError {
    /// Returns the word for the error in messages and counters.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Decode => "decode",
            Self::InvalidArgs => "invalid_args",
            Self::TooLarge => "too_large",
            Self::Timeout => "timeout",
        }
    }
}

/// A tool call that could not be read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MalformedCall {
    /// The id that the answer carries.
    pub id: String,
    /// The agent's text.
    pub raw: String,
    /// The kind of mistake.
    pub error: CallError,
    /// What is wrong, for the agent to read.
    pub message: String,
}

/// A call as the agent attempted it, in the order it was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallAttempt {
    /// Well-formed; the tool may still refuse it.
    Call(ToolCall),
    /// Not well-formed.
    Malformed(MalformedCall),
}

/// What the agent did in one turn: a view parsed from the tokens it sampled.
///
/// The tokens stay with the trajectory; an action is never turned back into tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Action {
    /// The text outside thinking and tool calls.
    pub text: String,
    /// The thinking, if the model marks it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// The tool calls in the order they were written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<CallAttempt>,
}

impl Action {
    /// Creates an action that is only text.
    ///
    /// ```
    /// assert!(turnwise_environment::Action::text("16").calls.is_empty());
    /// ```
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// Creates an action that calls one tool.
    #[must_use]
    pub fn call(name: impl Into<String>, arguments: Value) -> Self {
        let call = ToolCall { id: "call_0".to_owned(), name: name.into(), arguments };
        Self { calls: vec![CallAttempt::Call(call)], ..Self::default() }
    }

    /// Returns the calls that could be read.
    pub fn tool_calls(&self) -> impl Iterator<Item = &ToolCall> {
        self.calls.iter().filter_map(|attempt| match attempt {
            CallAttempt::Call(call) => Some(call),
            CallAttempt::Malformed(_) => None,
        })
    }

    /// Returns the number of calls that could not be read.
    #[must_use]
    pub fn n_malformed(&self) -> usize {
        self.calls.iter().filter(|attempt| matches!(attempt, CallAttempt::Malformed(_))).count()
    }

    /// Returns the action as an assistant message of a transcript.
    #[must_use]
    pub fn to_message(&self) -> Message {
        Message {
            reasoning: self.reasoning.clone(),
            tool_calls: self.tool_calls().cloned().collect(),
            ..Message::assistant(self.text.clone())
        }
    }
}

impl From<&str> for Action {
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}
