use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{CallError, EnvironmentError};

/// What the agent is told about a tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolSpec {
    /// The name it is called by.
    pub name: String,
    /// What it does, for the agent to read.
    pub description: String,
    /// JSON Schema of the arguments object.
    pub parameters: Value,
}

impl ToolSpec {
    /// The form chat templates expect: `{"type": "function", "function": {…}}`.
    #[must_use]
    pub fn to_function(&self) -> Value {
        json!({"type": "function", "function": self})
    }
}

/// What a tool answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolReply {
    /// The result, for the agent to read.
    Result(String),
    /// The call was not possible as asked; the reason is for the agent to read, and costs one unit of its fault budget.
    Error(CallError, String),
}

/// Something an agent can call.
///
/// # Contract
///
/// - `call` answers whatever the agent asks, however wrong: with [`ToolReply::Error`], not with `Err`, which means that
///   the tool itself is broken (a dead server, a full disk) and ends the episode without a reward.
/// - A tool that acts on the world is called at most once for each call the agent made; it is called again after a crash
///   only if it is [idempotent](Self::is_idempotent).
/// - `call` waits at await points, where a [`Toolbox`](crate::Toolbox) whose time limit has passed drops it. Whatever it
///   holds is then given back, and the tool answers the next call.
///
/// # Example
///
/// ```
/// use serde_json::{Value, json};
/// use turnwise_environment::{
///     CallError, EnvironmentError, Tool, ToolReply, ToolSpec, async_trait,
/// };
///
/// /// Looks a word up in a dictionary.
/// struct Lookup;
///
/// #[async_trait]
/// impl Tool for Lookup {
///     fn spec(&self) -> ToolSpec {
///         ToolSpec {
///             name: "lookup".to_owned(),
///             description: "Explains a word.".to_owned(),
///             parameters: json!({
///                 "type": "object",
///                 "properties": {"word": {"type": "string"}},
///                 "required": ["word"],
///             }),
///         }
///     }
///
///     fn is_idempotent(&self) -> bool {
///         true // looking a word up twice changes nothing
///     }
///
///     async fn call(&self, arguments: &Value) -> Result<ToolReply, EnvironmentError> {
///         Ok(match arguments["word"].as_str() {
///             Some("turn") => ToolReply::Result("one action and the answer to it".to_owned()),
///             Some(word) => ToolReply::Error(CallError::NotFound, format!("no word is {word}")),
///             None => ToolReply::Error(CallError::InvalidArgs, "word is not a text".to_owned()),
///         })
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), EnvironmentError> {
/// let reply = Lookup.call(&json!({"word": "turn"})).await?;
/// assert_eq!(reply, ToolReply::Result("one action and the answer to it".to_owned()));
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait Tool: Send + Sync {
    /// What the agent is told about it.
    fn spec(&self) -> ToolSpec;

    /// Whether calling twice is the same as calling once.
    fn is_idempotent(&self) -> bool {
        false
    }

    /// Answers one call.
    ///
    /// # Errors
    /// When the tool is broken, not when the call is wrong.
    async fn call(&self, arguments: &Value) -> Result<ToolReply, EnvironmentError>;
}
