use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Who speaks in a conversation, in the terms of chat templates.
///
/// A role is not an author: an assistant message may have been written by a person or another model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions that stand above the conversation.
    System,
    /// The environment, in the place of a person.
    User,
    /// The agent.
    Assistant,
    /// The result of a tool call.
    Tool,
}

/// One message of a conversation: text, never tokens.
///
/// Images, sounds and other parts that are no text cannot be said; a record that holds any is refused when it is read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
    /// The agent's thinking, where a template keeps it apart from the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// The calls an assistant message makes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call that a tool message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A message that is only text.
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

    /// Instructions above the conversation.
    #[must_use]
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }

    /// What the environment says.
    #[must_use]
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// What an agent said.
    #[must_use]
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }

    /// The answer to the call `id`.
    #[must_use]
    pub fn tool(id: impl Into<String>, content: impl Into<String>) -> Self {
        Self { tool_call_id: Some(id.into()), ..Self::new(Role::Tool, content) }
    }
}

/// A tool call that could be read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Unique within the action; the answer carries it.
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
    /// The call is longer than is read.
    TooLarge,
    /// The tool took longer than it may over what it was asked.
    Timeout,
}

impl CallError {
    /// The word that stands in the error's message and in counters.
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
    /// The id its answer carries.
    pub id: String,
    /// What the agent wrote.
    pub raw: String,
    /// What kind of mistake it is.
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
    /// The thinking, where the model marks it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// The tool calls in the order they were written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<CallAttempt>,
}

impl Action {
    /// An action that only says something.
    ///
    /// ```
    /// assert!(turnwise_environment::Action::text("16").calls.is_empty());
    /// ```
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// An action that calls one tool.
    #[must_use]
    pub fn call(name: impl Into<String>, arguments: Value) -> Self {
        let call = ToolCall { id: "call_0".to_owned(), name: name.into(), arguments };
        Self { calls: vec![CallAttempt::Call(call)], ..Self::default() }
    }

    /// The calls that could be read.
    pub fn tool_calls(&self) -> impl Iterator<Item = &ToolCall> {
        self.calls.iter().filter_map(|attempt| match attempt {
            CallAttempt::Call(call) => Some(call),
            CallAttempt::Malformed(_) => None,
        })
    }

    /// How many calls could not be read.
    #[must_use]
    pub fn n_malformed(&self) -> usize {
        self.calls.iter().filter(|attempt| matches!(attempt, CallAttempt::Malformed(_))).count()
    }

    /// The assistant message this action is in a transcript.
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
