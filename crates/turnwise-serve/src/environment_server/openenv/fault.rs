//! Errors of an episode, as OpenEnv's clients read them.

use serde_json::{Value, json};

/// The reason why a message has no answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct EpisodeFault {
    pub(super) code: FaultCode,
    pub(super) message: String,
    /// What is wrong with each field.
    pub(super) errors: Vec<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FaultCode {
    Validation,
    Execution,
    UnknownType,
    InvalidJson,
    Capacity,
    Session,
}

impl FaultCode {
    fn name(self) -> &'static str {
        match self {
            Self::Validation => "VALIDATION_ERROR",
            Self::Execution => "EXECUTION_ERROR",
            Self::UnknownType => "UNKNOWN_TYPE",
            Self::InvalidJson => "INVALID_JSON",
            Self::Capacity => "CAPACITY_REACHED",
            Self::Session => "SESSION_ERROR",
        }
    }
}

impl EpisodeFault {
    pub(super) fn new(code: FaultCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), errors: Vec::new() }
    }

    pub(super) fn execution(message: impl Into<String>) -> Self {
        Self::new(FaultCode::Execution, message)
    }

    pub(super) fn missing(field: &str, input: &Value) -> Self {
        Self::field("missing", field, "Field required", input)
    }

    pub(super) fn extra(field: &str, input: &Value) -> Self {
        Self::field("extra_forbidden", field, "Extra inputs are not permitted", input)
    }

    pub(super) fn field(kind: &str, field: &str, message: &str, input: &Value) -> Self {
        let error = json!({"type": kind, "loc": [field], "msg": message, "input": input});
        Self { errors: vec![error], ..Self::new(FaultCode::Validation, "Invalid message") }
    }

    /// Returns the frame of a WebSocket.
    pub(super) fn frame(&self) -> Value {
        let mut data = json!({"message": self.message, "code": self.code.name()});
        if !self.errors.is_empty() {
            data["errors"] = json!(self.errors);
        }
        json!({"type": "error", "data": data})
    }
}
