//! What the agent reads of a server's answers.

use serde_json::Value;
use turnwise_environment::CallError;

/// The answer to a call: its text, and whether it is an error that counts as a mistake of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CallAnswer {
    pub(super) text: String,
    pub(super) is_mistake: bool,
}

impl CallAnswer {
    pub(super) fn result(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_mistake: false }
    }

    /// Creates the answer to a call that was not possible as asked.
    pub(super) fn mistake(error: CallError, why: &str) -> Self {
        Self { text: format!("error: {}: {why}", error.as_str()), is_mistake: true }
    }

    /// Creates the answer of a tool that failed.
    pub(super) fn failed(why: &str) -> Self {
        Self { text: format!("error: {why}"), is_mistake: true }
    }
}

/// Joins the texts of content blocks; what is no text is named instead.
pub(super) fn blocks(blocks: &[Value]) -> String {
    let texts = blocks.iter().map(|block| match (block["text"].as_str(), block["type"].as_str()) {
        (Some(text), _) => text.to_owned(),
        (None, Some(kind)) => format!("[{} is not shown]", super::fault::shown(kind)),
        (None, None) => "[a part without a type is not shown]".to_owned(),
    });
    texts.collect::<Vec<String>>().join("\n")
}

/// Returns a text that is not empty: an agent has to see that something was answered.
pub(super) fn never_empty(text: String) -> String {
    if text.trim().is_empty() { "(nothing)".to_owned() } else { text }
}

/// Returns the text of an observation: its one string, or else the whole as JSON, without its metadata.
pub(super) fn observation_text(observation: &Value) -> String {
    let Some(fields) = observation.as_object() else { return json_or_text(observation) };
    let shown: serde_json::Map<String, Value> = fields
        .iter()
        .filter(|(name, value)| !is_bookkeeping(name) && !value.is_null())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut each = shown.values();
    match (each.next(), each.next()) {
        (Some(only), None) => json_or_text(only),
        (None, _) => String::new(),
        _ => Value::Object(shown).to_string(),
    }
}

/// Returns whether a field is on every observation and says nothing to the agent.
fn is_bookkeeping(name: &str) -> bool {
    matches!(name, "metadata" | "done" | "reward")
}

fn json_or_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_observation_is_its_one_text_or_json() {
        for (observation, expected) in [
            (json!({"hint": "higher"}), "higher"),
            (
                json!({"hint": "higher", "metadata": {"a": 1}, "done": false, "reward": 1.0}),
                "higher",
            ),
            (json!({"board": [0, 1], "turn": "x", "note": null}), r#"{"board":[0,1],"turn":"x"}"#),
            (json!({"board": [0, 1]}), "[0,1]"),
            (json!({}), ""),
            (json!("text"), "text"),
            (json!(null), ""),
        ] {
            assert_eq!(observation_text(&observation), expected);
        }
    }

    #[test]
    fn blocks_that_are_no_text_are_named() {
        let list = [
            json!({"type": "text", "text": "3"}),
            json!({"type": "image", "data": "…"}),
            json!({}),
        ];
        assert_eq!(blocks(&list), "3\n[image is not shown]\n[a part without a type is not shown]");
    }
}
