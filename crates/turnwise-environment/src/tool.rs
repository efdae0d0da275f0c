use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{CallError, EnvironmentError};

/// What the agent is told about a tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolSpec {
    /// The name in calls.
    pub name: String,
    /// What it does, for the agent to read.
    pub description: String,
    /// The JSON Schema of the arguments object.
    pub parameters: Value,
}

impl ToolSpec {
    /// Returns the form that chat templates expect: `{"type": "function", "function": {…}}`.
    #[must_use]
    pub fn to_function(&self) -> Value {
        json!({"type": "function", "function": self})
    }
}

/// A tool's reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolReply {
    /// The result, for the agent to read.
    Result(String),
    /// The call was not possible as asked; the agent reads the reason, and the call costs one unit of its fault budget.
    Error(CallError, String),
}

/// A tool that an agent can call.
///
/// # Contract
///
/// - `call` answers every wrong call with [`ToolReply::Error`]. `Err` means that the tool itself is broken (a dead
///   server, a full disk) and ends the episode without a reward.
/// - A tool that acts on the world is called at most once for each call of the agent; it is called again after a crash
///   only if it is [idempotent](Self::is_idempotent).
/// - `call` waits at await points, where a [`Toolbox`](crate::Toolbox) drops it once its time limit has passed.
///   Dropping it must release what it holds, and the tool must answer the next call.
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
    /// Returns what the agent is told about the tool.
    fn spec(&self) -> ToolSpec;

    /// Returns whether calling twice has the effect of calling once.
    fn is_idempotent(&self) -> bool {
        false
    }

    /// Answers one call.
    ///
    /// # Errors
    /// When the tool is broken, not when the call is wrong.
    async fn call(&self, arguments: &Value) -> Result<ToolReply, EnvironmentError>;
}
