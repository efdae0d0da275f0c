use async_trait::async_trait;
use serde_json::{Map, Value, json};
use turnwise_environment::{CallError, EnvironmentError, Tool, ToolReply, ToolSpec};

use crate::Operation;

/// The tool: `calc` with the arguments `{"a": 7, "op": "+", "b": 5}`.
///
/// Errors describe what is wrong with a call in a few words and never repeat the agent's text, which may be long.
///
/// # Example
///
/// ```
/// use serde_json::json;
/// use turnwise_calculator::Calc;
/// use turnwise_environment::{EnvironmentError, Tool, ToolReply};
///
/// async fn compute() -> Result<(), EnvironmentError> {
///     let reply = Calc.call(&json!({"a": 7, "op": "+", "b": 5})).await?;
///     assert_eq!(reply, ToolReply::Result("12".to_owned()));
///     Ok(())
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Calc;

impl Calc {
    /// The name of the tool in calls.
    pub const NAME: &str = "calc";
}

#[async_trait]
impl Tool for Calc {
    fn spec(&self) -> ToolSpec {
        ToolSpec {
            name: Self::NAME.to_owned(),
            description: "Computes a op b.".to_owned(),
            parameters: json!({
                "type": "object",
                "properties": {
                    "a": {"type": "integer"},
                    "op": {"type": "string", "enum": Operation::ALL.map(Operation::symbol)},
                    "b": {"type": "integer"},
                },
                "required": ["a", "op", "b"],
                "additionalProperties": false,
            }),
        }
    }

    fn is_idempotent(&self) -> bool {
        true
    }

    async fn call(&self, arguments: &Value) -> Result<ToolReply, EnvironmentError> {
        let result = Call::read(arguments)
            .and_then(|call| call.op.apply(call.a, call.b).ok_or("the result is too large"));
        Ok(match result {
            Ok(result) => ToolReply::Result(result.to_string()),
            Err(why) => ToolReply::Error(CallError::InvalidArgs, why.to_owned()),
        })
    }
}

/// The arguments of a valid call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) a: i64,
    pub(crate) op: Operation,
    pub(crate) b: i64,
}

impl Call {
    /// Reads arguments, or says what is wrong with them.
    pub(crate) fn read(arguments: &Value) -> Result<Self, &'static str> {
        let object = arguments.as_object().ok_or("the arguments must be an object")?;
        let a = integer(object, "a", "a is missing", "a must be an integer")?;
        let op = object.get("op").ok_or("op is missing")?;
        let b = integer(object, "b", "b is missing", "b must be an integer")?;
        let op = op.as_str().and_then(Operation::from_symbol).ok_or("op must be +, - or *")?;
        // The three required arguments are present, so any further one is unknown.
        if object.len() > 3 { Err("give a, op and b only") } else { Ok(Self { a, op, b }) }
    }

    /// Returns the arguments as an agent writes them.
    pub(crate) fn arguments(self) -> Value {
        json!({"a": self.a, "op": self.op.symbol(), "b": self.b})
    }

    /// Returns whether both calls apply the same operation to the same operands.
    pub(crate) fn is_like(self, other: Self) -> bool {
        let swapped = Self { a: other.b, b: other.a, ..other };
        self == other || (other.op.commutes() && self == swapped)
    }
}

fn integer(
    object: &Map<String, Value>,
    name: &str,
    missing: &'static str,
    wrong: &'static str,
) -> Result<i64, &'static str> {
    object.get(name).ok_or(missing)?.as_i64().ok_or(wrong)
}
