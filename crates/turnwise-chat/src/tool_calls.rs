use serde_json::{Map, Value, json};
use turnwise_environment::{Action, CallAttempt, CallError, MalformedCall, ToolCall, ToolSpec};

use crate::{schema, strict_json};

/// The most bytes between the tags of a call that are read.
pub const MAX_CALL_BYTES: usize = 64 * 1024;

const THINK: Tag = Tag { open: "<think>", close: "</think>", holds: Holds::Thinking };
const CALL: Tag = Tag { open: "<tool_call>", close: "</tool_call>", holds: Holds::Call };

#[derive(Clone, Copy)]
struct Tag {
    open: &'static str,
    close: &'static str,
    holds: Holds,
}

#[derive(Clone, Copy)]
enum Holds {
    Thinking,
    Call,
}

/// Reads the text of one turn: thinking, tool calls in the Hermes form, and what is said besides.
///
/// ```text
/// <think>
/// 3 + 5 needs the calculator.
/// </think>
///
/// <tool_call>
/// {"name": "calc", "arguments": {"a": 3, "op": "+", "b": 5}}
/// </tool_call>
/// ```
///
/// Never fails, in time linear in the text. Every form has its answer:
///
/// - Only the text matters, not whether a tag was drawn as one token or letter by letter; serving stacks do the same.
/// - The first closing tag ends a call, even inside a JSON string. A closing tag without an opening is text.
/// - A call in thinking is thinking. Thinking that is not closed reaches to the end. A code fence means nothing.
/// - A call that is not closed, is not JSON, is no object, has a key twice, nests 128 deep or has no name: `decode`.
/// - A call of more than [`MAX_CALL_BYTES`]: `too_large`. Arguments that are no object: `invalid_args`.
/// - Arguments left out are `{}`. Arguments as a string that holds an object are that object: the wire form of chat
///   endpoints, which models have seen. Other keys of the call are ignored. Names and schemas are
///   for [`Renderer::parse`](turnwise_rollout::Renderer::parse), which knows the tools.
///
/// Text and thinking are trimmed, and joined by a newline where tags divide them. Calls are numbered `call_0`, `call_1`, …
/// within the turn, the malformed ones too: a turn does not know how many came before it, and answers come before the
/// next turn's calls.
///
/// ```
/// let action = turnwise_chat::parse_turn("<tool_call>{\"name\": \"roll\"}</tool_call> Good luck!");
/// assert_eq!(action.tool_calls().next().map(|call| call.name.as_str()), Some("roll"));
/// assert_eq!(action.text, "Good luck!");
/// ```
#[must_use]
pub fn parse_turn(text: &str) -> Action {
    let (mut said, mut thought, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    let mut rest = Some(text);
    while let Some(text) = rest {
        let Some((at, tag)) = first_opening(text) else {
            said.push(text);
            break;
        };
        said.push(&text[..at]);
        let inside = &text[at + tag.open.len()..];
        let split = inside.split_once(tag.close);
        match tag.holds {
            Holds::Thinking => thought.push(split.map_or(inside, |(body, _)| body)),
            Holds::Call => calls.push(attempt(calls.len(), inside, split.map(|(body, _)| body))),
        }
        rest = split.map(|(_, after)| after);
    }
    let reasoning = Some(join(&thought)).filter(|thought| !thought.is_empty());
    Action { text: join(&said), reasoning, calls }
}

fn first_opening(text: &str) -> Option<(usize, Tag)> {
    let tag_at = |at: usize| [THINK, CALL].into_iter().find(|tag| text[at..].starts_with(tag.open));
    text.match_indices('<').find_map(|(at, _)| Some((at, tag_at(at)?)))
}

fn join(pieces: &[&str]) -> String {
    let pieces: Vec<&str> =
        pieces.iter().map(|piece| piece.trim()).filter(|piece| !piece.is_empty()).collect();
    pieces.join("\n")
}

/// `body` is what stands between the tags, `None` when there is no closing one.
fn attempt(index: usize, inside: &str, body: Option<&str>) -> CallAttempt {
    let id = format!("call_{index}");
    numbered(id, body.unwrap_or(inside), body.ok_or_else(unclosed).and_then(read_call))
}

/// A call with its id, or what was written and why it is none.
pub(crate) fn numbered(
    id: String,
    raw: &str,
    read: Result<(String, Value), Mistake>,
) -> CallAttempt {
    match read {
        Ok((name, arguments)) => CallAttempt::Call(ToolCall { id, name, arguments }),
        Err((error, message)) => {
            let raw = raw[..raw.floor_char_boundary(MAX_CALL_BYTES)].to_owned();
            CallAttempt::Malformed(MalformedCall { id, raw, error, message })
        }
    }
}

/// Holds the calls of a turn to the tools' schemas: a call that does not fit says so in place of being made. With no tools
/// nothing is known of them, and every call stays.
pub(crate) fn check_calls(mut action: Action, tools: &[ToolSpec]) -> Action {
    if tools.is_empty() {
        return action;
    }
    for attempt in &mut action.calls {
        let CallAttempt::Call(call) = attempt else { continue };
        if let Err(mistake) = schema::fit(call, tools) {
            let raw = json!({"name": call.name, "arguments": call.arguments}).to_string();
            *attempt = numbered(std::mem::take(&mut call.id), &raw, Err(mistake));
        }
    }
    action
}

pub(crate) type Mistake = (CallError, String);

fn unclosed() -> Mistake {
    (CallError::Decode, "the call has no closing tag".to_owned())
}

fn read_call(body: &str) -> Result<(String, Value), Mistake> {
    if body.len() > MAX_CALL_BYTES {
        let message =
            format!("the call has {} bytes; at most {MAX_CALL_BYTES} are read", body.len());
        return Err((CallError::TooLarge, message));
    }
    let decode = |message: String| (CallError::Decode, message);
    match strict_json::from_str(body) {
        Ok(value) => read_value(value, "arguments"),
        Err(error) => Err(decode(format!("the call cannot be read as JSON: {error}"))),
    }
}

/// A call whose arguments stand under this key.
pub(crate) fn read_value(value: Value, key: &str) -> Result<(String, Value), Mistake> {
    let decode = |message: &str| (CallError::Decode, message.to_owned());
    let Value::Object(mut call) = value else {
        return Err(decode("the call is not a JSON object"));
    };
    let name = match call.remove("name") {
        Some(Value::String(name)) => name,
        Some(_) => return Err(decode("the call's name is not a string")),
        None => return Err(decode("the call has no name")),
    };
    Ok((name, read_arguments(call.remove(key))?))
}

fn read_arguments(arguments: Option<Value>) -> Result<Value, Mistake> {
    let arguments = match arguments {
        None => Value::Object(Map::new()),
        Some(Value::String(text)) => strict_json::from_str(&text).map_err(|error| {
            (
                CallError::InvalidArgs,
                format!("the arguments are a string that is not JSON: {error}"),
            )
        })?,
        Some(arguments) => arguments,
    };
    if arguments.is_object() {
        Ok(arguments)
    } else {
        Err((CallError::InvalidArgs, "the arguments are not a JSON object".to_owned()))
    }
}
