//! Tools as a server describes them.

use std::collections::HashSet;

use serde_json::{Value, json};
use turnwise_environment::{EnvironmentError, ToolSpec};

use super::fault::{malformed, shown};

/// The most tools of an environment.
const MAX_TOOLS: usize = 256;

/// The longest name of a tool, in bytes.
const LONGEST_NAME: usize = 128;

/// The keys of a schema in MCP, and in OpenEnv and ORS. Versions of one server differ in it.
const SCHEMA_KEYS: [&str; 2] = ["inputSchema", "input_schema"];

/// Reads a list of tools.
pub(super) fn tools(list: &Value) -> Result<Vec<ToolSpec>, EnvironmentError> {
    let wrong = |why: String| malformed("the question for tools", why);
    let list = list.as_array().ok_or_else(|| wrong("it has no list".to_owned()))?;
    if list.len() > MAX_TOOLS {
        return Err(wrong(format!("it has {} tools, more than {MAX_TOOLS}", list.len())));
    }
    let tools: Vec<ToolSpec> =
        list.iter().map(tool).collect::<Result<_, String>>().map_err(wrong)?;
    let mut seen = HashSet::new();
    if let Some(twice) = tools.iter().find(|tool| !seen.insert(tool.name.as_str())) {
        return Err(wrong(format!("two tools are called `{}`", twice.name)));
    }
    Ok(tools)
}

fn tool(value: &Value) -> Result<ToolSpec, String> {
    let name = value["name"].as_str().ok_or("a tool has no name")?;
    // Names stand in prompts and in records.
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:".contains(&byte);
    if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(is_allowed) {
        return Err(format!("a tool is called {:?}", shown(name)));
    }
    let description = value["description"].as_str().unwrap_or_default();
    let schema = SCHEMA_KEYS.iter().map(|key| &value[*key]).find(|schema| !schema.is_null());
    let parameters = match schema {
        None => json!({"type": "object", "properties": {}}),
        Some(schema @ Value::Object(_)) => schema.clone(),
        Some(_) => return Err(format!("the schema of `{name}` is no object")),
    };
    Ok(ToolSpec { name: name.to_owned(), description: description.to_owned(), parameters })
}

/// Returns the only argument of a tool, if it is a string, so that a text can be given to it.
pub(super) fn only_text(tool: &ToolSpec) -> Option<&str> {
    let properties = tool.parameters["properties"].as_object()?;
    let mut each = properties.iter();
    let (name, schema) = each.next()?;
    (each.next().is_none() && schema["type"] == "string").then_some(name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_is_found_under_either_key_and_others_are_left_alone() {
        let schema = json!({"type": "object", "properties": {"text": {"type": "string"}}});
        let of_mcp = json!({"name": "say", "inputSchema": schema, "execution": null, "icons": []});
        let of_openenv =
            json!({"name": "say", "description": null, "input_schema": schema, "meta": {}});
        for list in [json!([of_mcp]), json!([of_openenv])] {
            let tools = tools(&list).unwrap();
            assert_eq!(tools[0].parameters, schema);
            assert_eq!(only_text(&tools[0]), Some("text"));
        }
        let none = tools(&json!([{"name": "look", "input_schema": null}])).unwrap();
        assert_eq!(none[0].parameters, json!({"type": "object", "properties": {}}));
        assert_eq!(only_text(&none[0]), None);
    }

    #[test]
    fn a_hostile_list_is_refused() {
        let many: Vec<Value> = (0..=MAX_TOOLS).map(|n| json!({"name": format!("t{n}")})).collect();
        for list in [
            json!(null),
            json!({}),
            json!([1]),
            json!([{"description": "no name"}]),
            json!([{"name": ""}]),
            json!([{"name": "<|im_end|>"}]),
            json!([{"name": "../../etc"}, {"name": "../../etc"}]),
            json!([{"name": "a".repeat(129)}]),
            json!([{"name": "a"}, {"name": "a"}]),
            json!([{"name": "a", "inputSchema": "string"}]),
            Value::Array(many),
        ] {
            assert!(tools(&list).is_err(), "{}", shown(&list.to_string()));
        }
    }
}
