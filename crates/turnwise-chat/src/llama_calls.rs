use serde_json::Value;
use turnwise_environment::{Action, CallAttempt, CallError};

use crate::call_bodies::{self, Calls};
use crate::tool_calls::{MAX_CALL_BYTES, Mistake, numbered, parse_with_ids, read_value};
use crate::{call_notation, strict_json};

pub(crate) const PYTHON_TAG: &str = "<|python_tag|>";

/// Parses the text of one turn in the format of Llama 3: the whole turn is tool calls, or none of it is.
///
/// ```text
/// {"name": "calc", "parameters": {"a": 3, "op": "+", "b": 5}}
/// ```
///
/// Never fails, takes time linear in the text, and parses at most [`MAX_CALL_BYTES`] of it as JSON at a time:
///
/// - A turn is calls when it starts with `<|python_tag|>`, with an object whose first key is `"name"`, or with one that
///   has a name and arguments in another order (`{"type": "function", "name": …`), also as its `function`. Anything
///   else is text: this format has no thinking and no tags, and a code fence has no meaning.
/// - Several calls follow each other, separated by blanks, `;` or `,`. Text after the last call is text.
/// - Arguments are under `parameters`, or under `arguments`.
/// - Invalid JSON, a duplicate key, a depth of 128 or a missing name: `decode`, up to the end of the turn. A call of
///   more than [`MAX_CALL_BYTES`]: `too_large`. Arguments that are not an object: `invalid_args`.
///
/// ```
/// let action = turnwise_chat::parse_llama_turn(r#"{"name": "roll", "parameters": {}}"#);
/// assert_eq!(action.tool_calls().next().map(|call| call.name.as_str()), Some("roll"));
/// assert_eq!(turnwise_chat::parse_llama_turn("Seven.").text, "Seven.");
/// ```
#[must_use]
pub fn parse_llama_turn(text: &str) -> Action {
    let trimmed = text.trim();
    let (mut rest, is_tagged) = match trimmed.strip_prefix(PYTHON_TAG) {
        Some(rest) => (rest.trim_start(), true),
        None => (trimmed, false),
    };
    if !is_tagged && !begins_call(rest) {
        return Action::text(trimmed);
    }
    let mut calls: Vec<CallAttempt> = Vec::new();
    while calls.is_empty() || begins_call(rest) {
        let id = format!("call_{}", calls.len());
        let read = read_first(rest);
        let length = read.as_ref().map_or(rest.len(), |(_, length)| *length);
        calls.push(numbered(id, &rest[..length], read.and_then(|(value, _)| read_object(value))));
        rest =
            rest[length..].trim_start_matches(|c: char| c.is_whitespace() || c == ';' || c == ',');
    }
    Action { calls, ..Action::text(rest) }
}

/// Parses the text of one turn of a template that writes bare calls: JSON as [`parse_llama_turn`] does, a JSON list of
/// calls, or a list of calls in Python. A turn that does not begin with these is parsed by its tags, and thoughts may
/// precede bare calls.
pub(crate) fn parse_bare_turn(text: &str) -> Action {
    parse_bare_with_ids(text).0
}

/// Parses a turn as [`parse_bare_turn`] does, and returns the id that it writes for each call.
pub(crate) fn parse_bare_with_ids(text: &str) -> (Action, Vec<Option<String>>) {
    let text = unwrapped(text);
    if begins_call(text) || text.starts_with(PYTHON_TAG) {
        return (parse_llama_turn(text), Vec::new());
    }
    if let Some(read) = parse_list(text) {
        return read;
    }
    let (tagged, ids) = parse_with_ids(text);
    if !tagged.calls.is_empty() {
        return (tagged, ids);
    }
    let rest = unwrapped(&tagged.text);
    let (bare, ids) = parse_list(rest).unwrap_or_else(|| (parse_llama_turn(rest), Vec::new()));
    (Action { reasoning: tagged.reasoning, ..bare }, ids)
}

/// Removes what Llama 4 and `HyperCLOVA X` write before a call.
fn unwrapped(text: &str) -> &str {
    let text = text.trim();
    let text = text.strip_prefix("-> tool/function_call").map_or(text, str::trim_start);
    let inside = text.strip_prefix("<|python_start|>").map(str::trim_start);
    inside.map_or(text, |inside| match inside.strip_prefix("<|python_end|>") {
        Some(inside) => inside.trim_start(),
        None => inside.trim_end().trim_end_matches("<|python_end|>"),
    })
}

/// Parses a list of calls, in JSON or in Python; text after it is text.
fn parse_list(text: &str) -> Option<(Action, Vec<Option<String>>)> {
    let mut calls = Calls::default();
    if call_notation::begins_python(text) {
        call_notation::python(&mut calls, text);
        return Some((Action { calls: calls.all, ..Action::text("") }, calls.ids));
    }
    let (value, length) = read_first(text).ok().filter(|_| text.starts_with('['))?;
    let items = value.as_array().filter(|items| !items.is_empty())?;
    if !items.iter().all(|item| is_call(item) || is_call(&item["function"])) {
        return None;
    }
    call_bodies::list(&mut calls, &text[..length]);
    let rest = text[length..].trim();
    Some((Action { calls: calls.all, ..Action::text(rest) }, calls.ids))
}

/// Returns whether a call starts here: an object whose first key is its name, or one that names a function in another
/// order.
fn begins_call(text: &str) -> bool {
    let Some(inside) = text.strip_prefix('{').map(str::trim_start) else { return false };
    if inside.starts_with("\"name\"") {
        return true;
    }
    let first = ["\"type\"", "\"function\"", "\"parameters\"", "\"arguments\"", "\"id\""];
    if !first.iter().any(|key| inside.starts_with(key)) {
        return false;
    }
    if let Ok((value, _)) = read_first(text) {
        return is_call(&value) || is_call(&value["function"]);
    }
    let rest = inside.strip_prefix("\"type\"").map(str::trim_start);
    let value = rest.and_then(|rest| rest.strip_prefix(':')).map(str::trim_start);
    value.is_some_and(|value| value.starts_with("\"function\""))
}

fn is_call(value: &Value) -> bool {
    let has_arguments = value.get("parameters").is_some() || value.get("arguments").is_some();
    value["name"].is_string() && (has_arguments || value["type"] == "function")
}

fn read_first(text: &str) -> Result<(Value, usize), Mistake> {
    let part = &text[..text.floor_char_boundary(MAX_CALL_BYTES)];
    strict_json::first(part).map_err(|error| {
        if error.is_eof() && part.len() < text.len() {
            let message = format!("the call has more than {MAX_CALL_BYTES} bytes");
            return (CallError::TooLarge, message);
        }
        (CallError::Decode, format!("the call cannot be read as JSON: {error}"))
    })
}

fn read_object(mut value: Value) -> Result<(String, Value), Mistake> {
    if is_call(&value["function"]) {
        value = value["function"].take();
    }
    let key = if value.get("parameters").is_some() { "parameters" } else { "arguments" };
    read_value(value, key)
}
