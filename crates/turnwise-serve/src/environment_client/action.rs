//! Actions in the form that a server's schema asks for.

use serde_json::{Map, Value};

/// How the model's text becomes an action.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ActionForm {
    /// The text is one field; the others have fixed values.
    Text {
        /// The name of the field.
        field: String,
        /// The others.
        fixed: Map<String, Value>,
    },
    /// The text is the action as JSON.
    Json,
}

/// The fields of every action that say nothing.
const BOOKKEEPING: [&str; 1] = ["metadata"];

impl ActionForm {
    /// Returns the form of a schema: a text if it has exactly one field that is a string and needs no other. `field` names
    /// the field instead.
    pub(super) fn of(schema: &Value, field: Option<&str>) -> Result<Self, String> {
        let nothing = Map::new();
        let properties = schema["properties"].as_object().unwrap_or(&nothing);
        let fixed: Map<String, Value> = properties
            .iter()
            .filter_map(|(name, schema)| Some((name.clone(), schema.get("const")?.clone())))
            .collect();
        if let Some(field) = field {
            if properties.contains_key(field) {
                return Ok(Self::Text { field: field.to_owned(), fixed });
            }
            let known: Vec<&str> = properties.keys().map(String::as_str).collect();
            return Err(format!(
                "`text_field` is `{field}`, and an action has {}",
                known.join(", ")
            ));
        }
        let is_free = |name: &&String| {
            !BOOKKEEPING.contains(&name.as_str()) && !fixed.contains_key(name.as_str())
        };
        let texts: Vec<&String> = properties.keys().filter(is_free).collect();
        let required = schema["required"].as_array().into_iter().flatten();
        let needed: Vec<&str> = required.filter_map(Value::as_str).collect();
        match texts.iter().filter(|name| is_text(&properties[name.as_str()])).collect::<Vec<_>>()[..]
        {
            [field] if needed.iter().all(|name| name == field || fixed.contains_key(*name)) => {
                Ok(Self::Text { field: (*field).clone(), fixed })
            }
            _ => Ok(Self::Json),
        }
    }

    /// Makes an action of the model's text; an error is what the model reads.
    pub(super) fn action(&self, text: &str) -> Result<Value, String> {
        match self {
            Self::Text { field, fixed } => {
                let mut action = fixed.clone();
                action.insert(field.clone(), Value::String(text.trim().to_owned()));
                Ok(Value::Object(action))
            }
            Self::Json => match serde_json::from_str(unfenced(text)) {
                Ok(action @ Value::Object(_)) => Ok(action),
                Ok(_) => Err("the action is no JSON object".to_owned()),
                Err(error) => Err(format!("the action is no JSON: {error}")),
            },
        }
    }

    /// Returns what a model has to be told about the form, if anything.
    pub(super) fn instructions(&self, schema: &Value) -> Option<String> {
        match self {
            Self::Text { .. } => None,
            Self::Json => Some(format!(
                "Answer with your action as one JSON object and nothing else. Its JSON Schema is\n{schema}"
            )),
        }
    }
}

/// Returns whether a schema allows a string.
fn is_text(schema: &Value) -> bool {
    let allowed = schema["anyOf"].as_array();
    schema["type"] == "string" || allowed.is_some_and(|any| any.iter().any(is_text))
}

/// Returns what is inside of a code block, as models write JSON, or the whole text.
fn unfenced(text: &str) -> &str {
    let text = text.trim();
    let inside = text.strip_prefix("```json").or_else(|| text.strip_prefix("```"));
    inside.and_then(|text| text.strip_suffix("```")).unwrap_or(text).trim()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn form(properties: &Value, required: &Value) -> ActionForm {
        ActionForm::of(&json!({"properties": properties, "required": required}), None).unwrap()
    }

    #[test]
    fn one_string_is_the_models_text_and_all_else_is_json() {
        let text = json!({"type": "string"});
        let metadata = json!({"type": "object"});
        let own = form(&json!({"metadata": metadata, "guess": text}), &json!(["guess"]));
        assert_eq!(own.action(" 5 ").unwrap(), json!({"guess": "5"}));
        let with_fixed =
            form(&json!({"type": {"const": "say"}, "guess": text}), &json!(["type", "guess"]));
        assert_eq!(with_fixed.action("5").unwrap(), json!({"type": "say", "guess": "5"}));
        let with_option =
            form(&json!({"guess": text, "bet": {"type": "integer"}}), &json!(["guess"]));
        assert_eq!(with_option.action("5").unwrap(), json!({"guess": "5"}));
        for (properties, required) in [
            (json!({"guess": {"type": "integer"}}), json!(["guess"])),
            (json!({"guess": text, "bet": {"type": "integer"}}), json!(["guess", "bet"])),
            (json!({"one": text, "two": text}), json!([])),
            (json!({}), json!([])),
        ] {
            assert_eq!(form(&properties, &required), ActionForm::Json);
        }
    }

    #[test]
    fn a_named_field_wins_and_an_unknown_one_is_refused() {
        let schema = json!({"properties": {"one": {"type": "string"}, "two": {"type": "string"}}});
        let form = ActionForm::of(&schema, Some("two")).unwrap();
        assert_eq!(form.action("x").unwrap(), json!({"two": "x"}));
        assert!(ActionForm::of(&schema, Some("three")).is_err());
    }

    #[test]
    fn json_is_read_and_a_mistake_is_told() {
        let form = ActionForm::Json;
        for text in ["{\"guess\": 1}", " ```json\n{\"guess\": 1}\n``` ", "```{\"guess\": 1}```"] {
            assert_eq!(form.action(text).unwrap(), json!({"guess": 1}), "{text}");
        }
        for text in ["", "1", "[1]", "guess 1", "{\"guess\": NaN}", &"[".repeat(10_000)] {
            assert!(form.action(text).is_err(), "{text}");
        }
    }
}
