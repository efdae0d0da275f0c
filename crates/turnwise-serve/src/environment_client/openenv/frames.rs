//! Messages of a server.

use serde_json::Value;
use turnwise_environment::EnvironmentError;

use super::super::fault::{field, malformed, shown};

/// A message of a server.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Frame {
    /// The answer to a reset or a step.
    Observed(Observed),
    /// The answer to a question of MCP.
    Mcp(Value),
    /// An error.
    Refused(Refusal),
}

/// An observation and what comes with it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Observed {
    pub(super) observation: Value,
    /// As it was sent.
    pub(super) reward: Value,
    pub(super) is_done: bool,
    /// Whether the server says that the task is solved.
    pub(super) solved: Option<bool>,
}

/// An error, as the server says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: String,
    pub(super) message: String,
    /// What is wrong with which field.
    pub(super) details: Vec<String>,
}

impl Frame {
    /// Reads a message.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, EnvironmentError> {
        let mut value: Value =
            serde_json::from_slice(bytes).map_err(|error| malformed("a message", error))?;
        let data = field(&mut value, "data");
        match value["type"].as_str() {
            Some("observation") => Observed::read(data).map(Self::Observed),
            Some("mcp") => Ok(Self::Mcp(data)),
            Some("error") => Ok(Self::Refused(Refusal::read(&data))),
            kind => {
                let kind = shown(kind.unwrap_or("nothing"));
                Err(malformed("a message", format!("its type is {kind}")))
            }
        }
    }

    /// Returns the error for an answer of another kind than the one that was asked for.
    pub(super) fn unexpected(&self, what: &str) -> EnvironmentError {
        match self {
            Self::Refused(refusal) => refusal.error(what),
            Self::Observed(_) => malformed(what, "it is an observation"),
            Self::Mcp(_) => malformed(what, "it is one of MCP"),
        }
    }
}

impl Observed {
    fn read(mut data: Value) -> Result<Self, EnvironmentError> {
        let is_done = match &data["done"] {
            Value::Bool(is_done) => *is_done,
            Value::Null => false,
            other => {
                return Err(malformed("a step", format!("done is {}", shown(&other.to_string()))));
            }
        };
        let observation = field(&mut data, "observation");
        let reward = field(&mut data, "reward");
        // Metadata is inside the observation in some versions, beside it in others, and in some nowhere.
        let solved = [&observation["metadata"], &data["metadata"]]
            .iter()
            .find_map(|metadata| metadata["solved"].as_bool());
        Ok(Self { observation, reward, is_done, solved })
    }
}

impl Refusal {
    fn read(data: &Value) -> Self {
        let text = |value: &Value| shown(value.as_str().unwrap_or_default());
        let place = |error: &Value| {
            let parts = error["loc"].as_array().into_iter().flatten();
            let parts =
                parts.map(|part| part.as_str().map_or_else(|| part.to_string(), str::to_owned));
            shown(&parts.collect::<Vec<String>>().join("."))
        };
        let errors = data["errors"].as_array().into_iter().flatten().take(8);
        let details = errors.map(|error| format!("{}: {}", place(error), text(&error["msg"])));
        Self {
            code: text(&data["code"]),
            message: text(&data["message"]),
            details: details.collect(),
        }
    }

    /// Returns whether the server is full, which passes.
    pub(super) fn is_of_capacity(&self) -> bool {
        self.code == "CAPACITY_REACHED"
    }

    /// Returns what the model reads if the action was its mistake.
    pub(super) fn mistake(&self) -> Option<String> {
        (self.code == "VALIDATION_ERROR").then(|| match self.details.as_slice() {
            [] => self.message.clone(),
            details => details.join("; "),
        })
    }

    /// Returns the error for a refusal that is not the model's mistake.
    pub(super) fn error(&self, what: &str) -> EnvironmentError {
        let Self { code, message, .. } = self;
        EnvironmentError::new(format!("the server answered {what} with {code}: {message}"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: &Value) -> Result<Frame, EnvironmentError> {
        Frame::read(value.to_string().as_bytes())
    }

    #[test]
    fn metadata_is_found_wherever_a_version_has_it() {
        let solved = |data: Value| match read(&json!({"type": "observation", "data": data})) {
            Ok(Frame::Observed(observed)) => observed.solved,
            other => panic!("{other:?}"),
        };
        let metadata = json!({"solved": true});
        assert_eq!(
            solved(json!({"observation": {"metadata": metadata}, "done": true})),
            Some(true)
        );
        assert_eq!(
            solved(json!({"observation": {}, "metadata": metadata, "done": true})),
            Some(true)
        );
        assert_eq!(solved(json!({"observation": {"metadata": {}}, "metadata": null})), None);
        assert_eq!(solved(json!({"observation": {}, "reward": null, "done": false})), None);
        assert_eq!(solved(json!({"observation": "text"})), None);
    }

    #[test]
    fn what_is_no_message_is_malformed() {
        for text in [
            "",
            "not json",
            "null",
            "[]",
            "{}",
            r#"{"type": 1}"#,
            r#"{"type": "harness"}"#,
            r#"{"type": "observation", "data": {"done": "yes"}}"#,
            r#"{"type": "observation", "data": {"reward": NaN}}"#,
            r#"{"type": "observation", "data": {"reward": Infinity}}"#,
            r#"{"type": "observation", "data": {"reward": 1e999}}"#,
        ] {
            assert!(Frame::read(text.as_bytes()).is_err(), "{text}");
        }
        let deep = [b"{\"type\":\"observation\",\"data\":".to_vec(), vec![b'['; 100_000]].concat();
        assert!(Frame::read(&deep).is_err());
    }

    #[test]
    fn a_refusal_is_the_models_mistake_if_it_is_one_of_validation() {
        let errors =
            json!([{"type": "missing", "loc": ["guess"], "msg": "Field required", "input": {}}]);
        let data =
            json!({"message": "Invalid message", "code": "VALIDATION_ERROR", "errors": errors});
        let Ok(Frame::Refused(refusal)) = read(&json!({"type": "error", "data": data})) else {
            panic!("an error")
        };
        assert_eq!(refusal.mistake().as_deref(), Some("guess: Field required"));
        for code in ["EXECUTION_ERROR", "SESSION_ERROR", "FACTORY_ERROR", "UNKNOWN_TYPE", ""] {
            let data = json!({"message": "boom!", "code": code});
            let Ok(Frame::Refused(refusal)) = read(&json!({"type": "error", "data": data})) else {
                panic!("an error")
            };
            assert_eq!((refusal.mistake(), refusal.is_of_capacity()), (None, false));
        }
    }
}
