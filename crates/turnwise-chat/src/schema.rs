use serde_json::{Map, Value};
use turnwise_environment::{CallError, ToolCall, ToolSpec};

use crate::strict_json;
use crate::tool_calls::Mistake;

/// The most characters of a name in a message, because the agent chose the name.
const MAX_NAME_CHARS: usize = 64;

/// Checks a call against its tool's schema, one level deep: the tool exists, required arguments are there, forbidden
/// ones are not, and each argument has an allowed type. Deeper rules are left to the tool.
///
/// A string argument is parsed as JSON if the schema does not allow a string, which small models' calls need.
pub(crate) fn fit(call: &mut ToolCall, tools: &[ToolSpec]) -> Result<(), Mistake> {
    let Some(tool) = tools.iter().find(|tool| tool.name == call.name) else {
        let message = format!("no tool is called `{}`", shortened(&call.name));
        return Err((CallError::NotFound, message));
    };
    let schema = &tool.parameters;
    let Value::Object(arguments) = &mut call.arguments else { return Ok(()) };
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    for name in required {
        if !arguments.contains_key(name) {
            return wrong(format!("the argument `{}` is missing", shortened(name)));
        }
    }
    let none = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&none);
    for (name, value) in arguments.iter_mut() {
        match properties.get(name) {
            Some(property) => fit_type(name, value, &property["type"])?,
            None if schema["additionalProperties"] == false => {
                return wrong(format!("the tool has no argument `{}`", shortened(name)));
            }
            None => {}
        }
    }
    Ok(())
}

fn fit_type(name: &str, value: &mut Value, allowed: &Value) -> Result<(), Mistake> {
    let allowed: Vec<&str> = match allowed {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => return Ok(()),
    };
    let fits = |value: &Value| allowed.iter().any(|allowed| is_of(value, allowed));
    if fits(value) {
        return Ok(());
    }
    let read = value.as_str().and_then(|text| match text.trim() {
        // Python's spelling.
        "True" => Some(Value::Bool(true)),
        "False" => Some(Value::Bool(false)),
        "None" => Some(Value::Null),
        text => strict_json::from_str(text).ok(),
    });
    match read.filter(fits) {
        Some(read) => {
            *value = read;
            Ok(())
        }
        None => wrong(format!(
            "the argument `{}` is not of type {}",
            shortened(name),
            allowed.join(" or ")
        )),
    }
}

/// Returns whether a value has a type; an unknown type allows everything.
fn is_of(value: &Value, allowed: &str) -> bool {
    match allowed {
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "null" => value.is_null(),
        _ => true,
    }
}

fn wrong(message: String) -> Result<(), Mistake> {
    Err((CallError::InvalidArgs, message))
}

/// Shortens a name for a message.
pub(crate) fn shortened(name: &str) -> String {
    let short: String = name.chars().take(MAX_NAME_CHARS).collect();
    if short.len() < name.len() { format!("{short}…") } else { short }
}
