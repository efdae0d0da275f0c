//! Whether a request lets the model call tools.

use serde_json::Value;

use crate::api_error::ApiError;

/// Returns whether the model may call tools in its next turn. Nothing can make it call one, so that a request for that is
/// refused: its program would wait for a call that may not come.
pub(crate) fn may_call(choice: Option<&Value>) -> Result<bool, ApiError> {
    let Some(choice) = choice.filter(|choice| !choice.is_null()) else { return Ok(true) };
    // OpenAI writes a word or an object, and Anthropic an object.
    match choice.as_str().or_else(|| choice["type"].as_str()) {
        Some("auto") => Ok(true),
        Some("none") => Ok(false),
        other => Err(ApiError::bad_request(format!(
            "tool_choice is `{}`, and a model cannot be made to call a tool here: use `auto`, or `none`",
            other.unwrap_or("of no kind")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_model_may_call_or_not_but_never_has_to() {
        for (choice, expected) in [
            (json!(null), true),
            (json!("auto"), true),
            (json!({"type": "auto"}), true),
            (json!("none"), false),
            (json!({"type": "none"}), false),
        ] {
            assert_eq!(may_call(Some(&choice)), Ok(expected), "{choice}");
        }
        assert_eq!(may_call(None), Ok(true));
        for choice in [
            json!("required"),
            json!({"type": "any"}),
            json!({"type": "tool", "name": "add"}),
            json!({"type": "function", "function": {"name": "add"}}),
            json!({"type": "allowed_tools", "mode": "required", "tools": []}),
            json!(1),
            json!([]),
        ] {
            let error = may_call(Some(&choice)).unwrap_err().to_string();
            assert!(error.contains("cannot be made to call a tool"), "{choice}: {error}");
        }
    }
}
