use serde_json::{Map, Value, json};

use crate::{Action, CallAttempt, Demonstrator, Observation, Random, ToolCall, ToolSpec};

/// A player for any environment: it answers with words from the observation or small numbers, and calls tools with
/// arguments that fit their schemas.
///
/// Checks, and the training of a new model's vocabulary, use it where a suite offers no player of its own.
#[derive(Clone, Debug)]
pub struct Babbler {
    random: Random,
    tools: Vec<ToolSpec>,
}

/// The depth to which nested arguments are filled.
const MAX_DEPTH: usize = 3;

impl Babbler {
    /// Creates a player from a seed and the tools that the environment offers.
    #[must_use]
    pub fn new(seed: u64, tools: Vec<ToolSpec>) -> Self {
        Self { random: Random::new(seed), tools }
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        (!items.is_empty()).then(|| &items[self.random.below(items.len() as u64) as usize])
    }

    fn word(&mut self, shown: &str) -> String {
        let words: Vec<&str> = shown.split_whitespace().collect();
        let number = self.random.below(21);
        match (self.random.below(2), self.pick(&words)) {
            (0, Some(word)) => word.trim_matches(|c: char| !c.is_alphanumeric()).to_owned(),
            _ => number.to_string(),
        }
    }

    /// Returns a random value that fits a JSON Schema, as far as this function understands the schema.
    fn value(&mut self, schema: &Value, shown: &str, depth: usize) -> Value {
        if let Some(values) = schema.get("enum").and_then(Value::as_array) {
            return self.pick(values).cloned().unwrap_or(Value::Null);
        }
        for key in ["anyOf", "oneOf"] {
            if let Some(schemas) = schema.get(key).and_then(Value::as_array)
                && let Some(schema) = self.pick(schemas)
            {
                return self.value(schema, shown, depth);
            }
        }
        let kind = match schema.get("type") {
            Some(Value::Array(kinds)) => kinds.first().and_then(Value::as_str),
            kind => kind.and_then(Value::as_str),
        };
        match kind {
            Some("integer" | "number") => json!(self.random.below(21)),
            Some("boolean") => json!(self.random.below(2) == 0),
            Some("array") if depth < MAX_DEPTH => {
                let items = schema.get("items").unwrap_or(&Value::Null);
                (0..self.random.below(3)).map(|_| self.value(items, shown, depth + 1)).collect()
            }
            Some("array") => json!([]),
            Some("object") => Value::Object(self.object(schema, shown, depth)),
            Some("null") => Value::Null,
            _ => json!(self.word(shown)),
        }
    }

    fn object(&mut self, schema: &Value, shown: &str, depth: usize) -> Map<String, Value> {
        let properties = schema.get("properties").and_then(Value::as_object);
        let properties = properties.filter(|_| depth < MAX_DEPTH).into_iter().flatten();
        properties
            .map(|(name, schema)| (name.clone(), self.value(schema, shown, depth + 1)))
            .collect()
    }
}

impl Demonstrator for Babbler {
    fn act(&mut self, observation: &Observation) -> Action {
        let shown: Vec<&str> =
            observation.messages.iter().map(|message| message.content.as_str()).collect();
        let shown = shown.join(" ");
        let tools = std::mem::take(&mut self.tools);
        let talks = self.random.below(4) == 0;
        let action = match self.pick(&tools).filter(|_| !talks) {
            Some(tool) => {
                let arguments = self.object(&tool.parameters, &shown, 0);
                let (id, name) = ("call_0".to_owned(), tool.name.clone());
                let call = ToolCall { id, name, arguments: Value::Object(arguments) };
                Action { calls: vec![CallAttempt::Call(call)], ..Action::default() }
            }
            None => Action::text(self.word(&shown)),
        };
        self.tools = tools;
        action
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_fit_the_schema() {
        let tool = ToolSpec {
            name: "add".to_owned(),
            description: String::new(),
            parameters: json!({"type": "object", "properties": {
                "item": {"type": "string", "enum": ["tea", "milk"]},
                "count": {"type": "integer"},
                "tags": {"type": "array", "items": {"type": "boolean"}},
            }}),
        };
        let mut babbler = Babbler::new(1, vec![tool]);
        let mut n_calls = 0;
        for _ in 0..64 {
            let action = babbler.act(&"What do you want?".into());
            for call in action.tool_calls() {
                n_calls += 1;
                assert!(["tea", "milk"].contains(&call.arguments["item"].as_str().unwrap()));
                assert!(call.arguments["count"].is_u64());
                assert!(call.arguments["tags"].as_array().unwrap().iter().all(Value::is_boolean));
            }
        }
        assert!(n_calls > 30);
    }
}
