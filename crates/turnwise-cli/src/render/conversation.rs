//! Conversations in the JSON of chat APIs.

use serde_json::{Map, Value};
use turnwise_environment::{Message, Role, ToolCall, ToolSpec};

use turnwise_run::Failure;

/// A conversation to render.
#[derive(Debug)]
pub(super) struct Conversation {
    pub(super) messages: Vec<Message>,
    pub(super) tools: Vec<ToolSpec>,
    /// The key under which each message has its thoughts.
    pub(super) thought_keys: Vec<Option<&'static str>>,
    /// Whether the lead-in to the model's next turn is at the end.
    pub(super) leads_in: bool,
    /// The time that the template sees.
    pub(super) time: Option<String>,
    /// Other variables of the template.
    pub(super) arguments: Map<String, Value>,
}

const FORM: &str =
    "[{\"role\": \"user\", \"content\": \"…\"}, …], or {\"messages\": […], \"tools\": […]}";

/// Parses a conversation: a list of messages, or an object with one, and optional tools and template variables. Other
/// keys of the object, and the names of speakers, are ignored: no renderer uses them.
pub(super) fn parse(name: &str, text: &str) -> Result<Conversation, Failure> {
    let value: Value = serde_json::from_str(text).map_err(|error| {
        Failure::refused(format!("{name} is not JSON: {error}"))
            .help(format!("a conversation is  {FORM}"))
    })?;
    let empty = Map::new();
    let (messages, rest) = match &value {
        Value::Array(messages) => (messages, &empty),
        Value::Object(object) => match object.get("messages") {
            Some(Value::Array(messages)) => (messages, object),
            _ => return Err(wrong(name, "has no list `messages`")),
        },
        _ => return Err(wrong(name, "is neither a list of messages nor an object")),
    };
    if messages.is_empty() {
        return Err(wrong(name, "has no messages"));
    }
    let thought_keys = messages.iter().map(thought_key).collect();
    let messages = messages.iter().enumerate().map(|(index, value)| message(index, value));
    let messages = messages.collect::<Result<_, _>>()?;
    let tools = match rest.get("tools") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(tools)) => tools
            .iter()
            .enumerate()
            .map(|(index, value)| tool(index, value))
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(wrong(name, "has `tools` that are not a list")),
    };
    let leads_in = match rest.get("add_generation_prompt") {
        None | Some(Value::Null) => true,
        Some(Value::Bool(leads_in)) => *leads_in,
        Some(_) => {
            return Err(wrong(name, "has an `add_generation_prompt` that is not true or false"));
        }
    };
    let time = rest.get("time").and_then(Value::as_str).map(str::to_owned);
    let arguments = arguments(name, rest)?;
    Ok(Conversation { messages, tools, thought_keys, leads_in, time, arguments })
}

fn wrong(name: &str, what: &str) -> Failure {
    Failure::refused(format!("{name} {what}")).help(format!("a conversation is  {FORM}"))
}

fn arguments(name: &str, rest: &Map<String, Value>) -> Result<Map<String, Value>, Failure> {
    let mut arguments = Map::new();
    for key in ["template_kwargs", "chat_template_kwargs"] {
        match rest.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::Object(given)) => arguments.extend(given.clone()),
            Some(_) => return Err(wrong(name, &format!("has `{key}` that are not an object"))),
        }
    }
    if let Some(thinks) = rest.get("enable_thinking") {
        arguments.insert("enable_thinking".to_owned(), thinks.clone());
    }
    Ok(arguments)
}

fn message(index: usize, value: &Value) -> Result<Message, Failure> {
    let refused = |what: &str| Failure::refused(format!("message {index} {what}"));
    let role = match &value["role"] {
        // The newer name of system messages.
        Value::String(role) if role == "developer" => Role::System,
        Value::String(role) => serde_json::from_value(value["role"].clone()).map_err(|_| {
            refused(&format!("has the role {role:?}"))
                .help("known roles: system, developer (which is system), user, assistant, tool")
        })?,
        _ => return Err(refused("has no role").help(format!("a conversation is  {FORM}"))),
    };
    let tool_calls = list(&value["tool_calls"]).map(call).collect::<Option<Vec<_>>>();
    let tool_calls = tool_calls.ok_or_else(|| {
        refused("has a tool call without a name")
            .help("a call is  {\"type\": \"function\", \"function\": {\"name\": \"…\", \"arguments\": {…}}}")
    })?;
    if !tool_calls.is_empty() && role != Role::Assistant {
        return Err(refused("calls a tool, but is not the assistant's"));
    }
    let content = match content(&value["content"]) {
        Ok(Some(content)) => content,
        Ok(None) if !tool_calls.is_empty() => String::new(),
        Ok(None) => {
            let help = "an assistant message may omit `content` only if it has `tool_calls`";
            return Err(refused("has no content").help(help));
        }
        Err(what) => return Err(refused(&what).help("only text can be rendered")),
    };
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    Ok(Message {
        reasoning: thought_key(value).and_then(text),
        tool_calls,
        tool_call_id: text("tool_call_id"),
        ..Message::new(role, content)
    })
}

/// Returns the key under which a message has its thoughts.
fn thought_key(message: &Value) -> Option<&'static str> {
    ["reasoning_content", "reasoning", "thinking"].into_iter().find(|key| message[key].is_string())
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Returns the content as text: a string, or parts that are all text.
fn content(value: &Value) -> Result<Option<String>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Array(parts) => {
            let texts = parts.iter().map(|part| match (&part["type"], &part["text"]) {
                (Value::String(kind), Value::String(text)) if kind == "text" => Ok(text.as_str()),
                (kind, _) => Err(format!("has a part of type {kind}")),
            });
            texts.collect::<Result<String, _>>().map(Some)
        }
        _ => Err("has a content that is not text".to_owned()),
    }
}

fn call(value: &Value) -> Option<ToolCall> {
    let function = if value["function"].is_null() { value } else { &value["function"] };
    Some(ToolCall {
        id: value["id"].as_str().unwrap_or_default().to_owned(),
        name: function["name"].as_str()?.to_owned(),
        arguments: function.get("arguments").cloned().unwrap_or_else(|| Map::new().into()),
    })
}

fn tool(index: usize, value: &Value) -> Result<ToolSpec, Failure> {
    let function = if value["function"].is_null() { value } else { &value["function"] };
    let Some(name) = function["name"].as_str() else {
        return Err(Failure::refused(format!("tool {index} has no name")).help(
            "a tool is  {\"type\": \"function\", \"function\": {\"name\": \"…\", \"description\": \"…\", \"parameters\": {…}}}",
        ));
    };
    Ok(ToolSpec {
        name: name.to_owned(),
        description: function["description"].as_str().unwrap_or_default().to_owned(),
        parameters: function.get("parameters").cloned().unwrap_or_else(|| Map::new().into()),
    })
}
