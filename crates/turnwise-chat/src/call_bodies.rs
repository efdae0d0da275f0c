//! Bodies of tool calls, in each of the formats that models write.

use serde_json::{Map, Value};
use turnwise_environment::{CallAttempt, CallError};

use crate::schema::shortened;
use crate::strict_json;
use crate::tool_calls::{
    MINIMAX_MARK, Mistake, check_length, numbered, read_arguments, read_json, read_value, unclosed,
};

/// The calls of a turn, numbered in order.
#[derive(Default)]
pub(crate) struct Calls {
    pub(crate) all: Vec<CallAttempt>,
    /// The id that the turn writes for each call.
    pub(crate) ids: Vec<Option<String>>,
}

impl Calls {
    pub(crate) fn push(&mut self, raw: &str, read: Read) {
        self.push_as(None, raw, read);
    }

    fn push_as(&mut self, id: Option<String>, raw: &str, read: Read) {
        self.all.push(numbered(format!("call_{}", self.all.len()), raw, read));
        self.ids.push(id);
    }

    /// Adds a call in JSON.
    fn push_json(&mut self, raw: &str, call: Value, read: impl Fn(Value) -> Read) {
        let id = ["id", "tool_call_id"].into_iter().find_map(|key| call[key].as_str());
        let id = id.map(str::to_owned);
        self.push_as(id, raw, read(call));
    }
}

/// The name and the arguments of a call.
type Read = Result<(String, Value), Mistake>;

/// Parses one call: JSON, parameters in XML, keys and values, or a name and fenced JSON.
pub(crate) fn call(calls: &mut Calls, body: &str) {
    let text = body.trim();
    if text.starts_with("<function=") {
        return functions(calls, text);
    }
    if text.strip_prefix('[').is_some_and(|inside| inside.trim_start().starts_with('{')) {
        return list(calls, text);
    }
    if text.starts_with(MINIMAX_MARK) {
        return elements(calls, &body.replace(MINIMAX_MARK, ""));
    }
    if text.contains("<longcat_arg_key>") {
        return call(calls, &body.replace("longcat_arg_", "arg_"));
    }
    let name = text.split(['\n', '<']).next().unwrap_or_default().trim();
    let rest = text[text.find(name).unwrap_or(0) + name.len()..].trim_start();
    let rest = rest.strip_prefix("<tool_sep>").unwrap_or(rest).trim_start();
    let is_named =
        !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c));
    let read = match () {
        () if is_named && rest.starts_with("<arg_key>") => check_length(body)
            .and_then(|()| keys_and_values(rest))
            .map(|arguments| (name.to_owned(), arguments)),
        () if is_named && rest.starts_with("```") => named(name, unfenced(rest)),
        // GLM writes the name alone, on its own line, for a call without arguments.
        () if is_named && rest.is_empty() && body.starts_with(name) && body.ends_with('\n') => {
            Ok((name.to_owned(), Value::Object(Map::new())))
        }
        () => match check_length(body).and_then(|()| read_json(body)) {
            Ok(call) => return calls.push_json(body, call, |call| read_value(call, "arguments")),
            Err(mistake) => Err(mistake),
        },
    };
    calls.push(body, read);
}

/// Parses `<function=NAME>` with parameters, any number of times.
fn functions(calls: &mut Calls, text: &str) {
    let mut rest = text;
    while let Some((_, inside)) = rest.split_once("<function=") {
        let (body, after) = inside.split_once("</function>").unwrap_or((inside, ""));
        function(calls, body);
        rest = after;
    }
}

/// Parses `NAME>` and its parameters in XML, or its arguments as JSON (Llama 3.1's format of functions).
pub(crate) fn function(calls: &mut Calls, body: &str) {
    let read = || {
        check_length(body)?;
        let (name, inside) = body.split_once('>').ok_or_else(unclosed)?;
        let name = name.trim().trim_matches(['"', '\'']);
        if inside.trim_start().starts_with('{') {
            return named(name, inside);
        }
        let mut arguments = Map::new();
        let (mut rest, mut has_close) = (inside, true);
        while let Some((_, inside)) = rest.split_once("<parameter=") {
            let (key, inside) = inside.split_once('>').ok_or_else(unclosed)?;
            // A missing close is searched for once: otherwise each parameter would search the whole rest.
            let close = if has_close { inside.find("</parameter>") } else { None };
            has_close = close.is_some();
            // Some turns do not close a parameter before the next one.
            let end = close.or_else(|| inside.find("<parameter="));
            let (value, after) = inside.split_at(end.unwrap_or(inside.len()));
            set(&mut arguments, key.trim(), value)?;
            rest = after;
        }
        Ok((name.to_owned(), Value::Object(arguments)))
    };
    calls.push(body, read());
}

/// Parses `<arg_key>K</arg_key>` and `<arg_value>V</arg_value>`, the format of GLM.
fn keys_and_values(text: &str) -> Result<Value, Mistake> {
    let mut arguments = Map::new();
    let mut rest = text;
    while let Some((_, inside)) = rest.split_once("<arg_key>") {
        let (key, after) = inside.split_once("</arg_key>").unwrap_or((inside, ""));
        let value = after.split_once("<arg_value>").map_or("", |(_, value)| value);
        let (value, after) = value.split_once("</arg_value>").unwrap_or((value, ""));
        insert(&mut arguments, key.trim(), value)?;
        rest = after;
    }
    Ok(Value::Object(arguments))
}

fn set(arguments: &mut Map<String, Value>, key: &str, value: &str) -> Result<(), Mistake> {
    let value = value.strip_prefix('\n').unwrap_or(value);
    let value = value.strip_suffix('\n').unwrap_or(value);
    insert(arguments, key, value)
}

fn insert(arguments: &mut Map<String, Value>, key: &str, value: &str) -> Result<(), Mistake> {
    if arguments.insert(key.to_owned(), value.into()).is_none() {
        return Ok(());
    }
    let message = format!("the parameter {:?} is written twice", shortened(key));
    Err((CallError::Decode, message))
}

/// Parses a function's arguments as JSON; an empty text is `{}`.
pub(crate) fn named(name: &str, arguments: &str) -> Result<(String, Value), Mistake> {
    check_length(arguments)?;
    let arguments = arguments.trim();
    let value = if arguments.is_empty() {
        None
    } else {
        let read = strict_json::from_str(arguments);
        Some(read.map_err(|error| {
            (CallError::Decode, format!("the arguments cannot be read as JSON: {error}"))
        })?)
    };
    if name.trim().is_empty() {
        return Err((CallError::Decode, "the call has no name".to_owned()));
    }
    Ok((name.trim().to_owned(), read_arguments(value)?))
}

fn unfenced(text: &str) -> &str {
    let text = text.trim().trim_start_matches("```").trim_start_matches("json");
    text.trim_end().trim_end_matches("```")
}

/// Returns the texts between two tags; the last one may lack its close.
fn each<'a>(text: &'a str, open: &str, close: &str) -> Vec<(&'a str, bool)> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((_, inside)) = rest.split_once(open) {
        let split = inside.split_once(close);
        parts.push((split.map_or(inside, |(body, _)| body), split.is_some()));
        rest = split.map_or("", |(_, after)| after);
    }
    parts
}

/// Parses `function<｜tool▁sep｜>NAME` and fenced JSON (V3, R1), or `NAME<｜tool▁sep｜>JSON` (V3.1).
pub(crate) fn deepseek(calls: &mut Calls, body: &str) {
    for (part, is_closed) in each(body, "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>")
    {
        let read = match part.split_once("<｜tool▁sep｜>") {
            _ if !is_closed => Err(unclosed()),
            Some((kind, rest)) if kind.trim() == "function" && rest.contains("```") => {
                let (name, arguments) = rest.split_once("```").unwrap_or((rest, ""));
                named(name, unfenced(arguments))
            }
            Some((name, arguments)) => named(name, unfenced(arguments)),
            None => Err((CallError::Decode, "the call has no <｜tool▁sep｜>".to_owned())),
        };
        calls.push(part, read);
    }
}

/// Parses `functions.NAME:NUMBER<|tool_call_argument_begin|>JSON`.
pub(crate) fn kimi(calls: &mut Calls, body: &str) {
    for (part, is_closed) in each(body, "<|tool_call_begin|>", "<|tool_call_end|>") {
        let read = match part.split_once("<|tool_call_argument_begin|>") {
            _ if !is_closed => Err(unclosed()),
            Some((id, arguments)) => {
                let id = id.trim().strip_prefix("functions.").unwrap_or(id.trim());
                named(id.rsplit_once(':').map_or(id, |(name, _)| name), arguments)
            }
            None => Err((CallError::Decode, "the call has no arguments".to_owned())),
        };
        let id = part.split_once("<|tool_call_argument_begin|>").map(|(id, _)| id.trim());
        calls.push_as(id.map(str::to_owned), part, read);
    }
}

/// Parses `<invoke name="NAME"><parameter name="KEY">VALUE</parameter></invoke>`, the format of `MiniMax`, Step 3 and
/// newer `DeepSeek` models.
pub(crate) fn invokes(calls: &mut Calls, body: &str) {
    let plain = ["｜DSML｜", "steptml:", "atem:"]
        .into_iter()
        .fold(body.to_owned(), |plain, prefix| plain.replace(prefix, ""));
    for (part, is_closed) in each(&plain, "<invoke", "</invoke>") {
        let read = if is_closed { invoke(part, "parameter") } else { Err(unclosed()) };
        calls.push(part, read);
    }
}

/// Parses `<invoke name="NAME"><KEY>VALUE</KEY></invoke>`, the format of `MiniMax` M3.
fn elements(calls: &mut Calls, body: &str) {
    for (part, is_closed) in each(body, "<invoke", "</invoke>") {
        let read = || {
            check_length(part)?;
            let (name, mut rest) = part.split_once('>').ok_or_else(unclosed)?;
            let mut arguments = Map::new();
            while let Some((_, inside)) = rest.split_once('<') {
                let (key, inside) = inside.split_once('>').ok_or_else(unclosed)?;
                let (value, after) =
                    inside.split_once(&format!("</{key}>")).ok_or_else(unclosed)?;
                set(&mut arguments, key.trim(), value)?;
                rest = after;
            }
            Ok((attribute(name).to_owned(), Value::Object(arguments)))
        };
        calls.push(part, if is_closed { read() } else { Err(unclosed()) });
    }
}

/// Parses `"NAME"><param name="KEY">VALUE</param>`.
pub(crate) fn parameters(calls: &mut Calls, body: &str) {
    calls.push(body, invoke(body, "param"));
}

/// Parses a name, and a tag for each parameter.
fn invoke(part: &str, tag: &str) -> Result<(String, Value), Mistake> {
    check_length(part)?;
    let (name, inside) = part.split_once('>').ok_or_else(unclosed)?;
    let mut arguments = Map::new();
    for (parameter, _) in each(inside, &format!("<{tag}"), &format!("</{tag}>")) {
        let (key, value) = parameter.split_once('>').ok_or_else(unclosed)?;
        set(&mut arguments, attribute(key), value)?;
    }
    Ok((attribute(name).to_owned(), Value::Object(arguments)))
}

/// Parses `function`, a line with the name, and JSON.
pub(crate) fn step(calls: &mut Calls, body: &str) {
    let text = body.trim();
    let text = text.strip_prefix("function\n").unwrap_or(text).trim_start();
    let (name, arguments) = text.split_once('\n').unwrap_or((text, ""));
    calls.push(body, named(name, arguments));
}

/// Parses `ID<|tool_call:name|>NAME<|tool_call:args|>JSON`.
pub(crate) fn solar(calls: &mut Calls, body: &str) {
    let inside = body.split_once("<|tool_call:name|>").map_or(body, |(_, inside)| inside);
    let (name, arguments) = inside.split_once("<|tool_call:args|>").unwrap_or((inside, ""));
    calls.push(body, named(name, arguments));
}

/// Parses `NAME` and `<|tool_arg:start|>KEY<|tool_arg:value|>VALUE<|tool_arg:end|>`.
pub(crate) fn solar_arguments(calls: &mut Calls, body: &str) {
    let read = || {
        let (name, _) = named(body.split("<|").next().unwrap_or_default(), "")?;
        check_length(body)?;
        let mut arguments = Map::new();
        for (argument, _) in each(body, "<|tool_arg:start|>", "<|tool_arg:end|>") {
            let (key, value) = argument.split_once("<|tool_arg:value|>").ok_or_else(unclosed)?;
            insert(&mut arguments, key.trim(), value)?;
        }
        Ok((name, Value::Object(arguments)))
    };
    calls.push(body, read());
}

/// Returns the value of `name="…"`.
fn attribute(text: &str) -> &str {
    let quoted = text.split_once("name=").map_or(text, |(_, value)| value).trim();
    match quoted.chars().next() {
        Some(quote @ ('"' | '\'')) => quoted[1..].split(quote).next().unwrap_or_default(),
        _ => quoted,
    }
}

/// Parses the calls of a model whose tags end with `:opensource`.
pub(crate) fn opensource(calls: &mut Calls, body: &str) {
    list(calls, &body.replace(":opensource", ""));
}

/// Parses a JSON list of calls, or one call.
pub(crate) fn list(calls: &mut Calls, body: &str) {
    if body.trim_start().starts_with("<tool_call>") {
        for (part, is_closed) in each(body, "<tool_call>", "</tool_call>") {
            if is_closed { call(calls, part) } else { calls.push(part, Err(unclosed())) }
        }
        return;
    }
    match check_length(body).and_then(|()| read_json(body)) {
        Ok(Value::Array(items)) => items.into_iter().for_each(|item| {
            let raw = item.to_string();
            calls.push_json(&raw, item, listed);
        }),
        Ok(one) => calls.push_json(body, one, listed),
        Err(mistake) => calls.push(body, Err(mistake)),
    }
}

/// Parses one call of a list, with the keys of any known format.
fn listed(mut item: Value) -> Result<(String, Value), Mistake> {
    if item["function"].is_object() {
        item = item["function"].take();
    }
    if let Value::Object(entries) = &mut item {
        // Apertus writes the arguments under the name of the tool.
        let is_alone = entries.len() == 1 && entries.values().all(Value::is_object);
        if is_alone && let Some((name, arguments)) = std::mem::take(entries).into_iter().next() {
            return Ok((name, arguments));
        }
        for (other, usual) in [("tool_name", "name"), ("parameters", "arguments")] {
            if !entries.contains_key(usual)
                && let Some(value) = entries.remove(other)
            {
                entries.insert(usual.to_owned(), value);
            }
        }
    }
    read_value(item, "arguments")
}

/// Parses a JSON list of calls, or `NAME[ARGS]JSON`, with or without an id between them. Text after the list is
/// dropped.
pub(crate) fn mistral(calls: &mut Calls, body: &str) {
    let text = body.trim();
    if text.starts_with(['[', '{']) {
        let length = strict_json::first(text).map_or(text.len(), |(_, length)| length);
        return list(calls, &text[..length]);
    }
    let (head, arguments) = match text.split_once("[ARGS]") {
        Some(split) => split,
        None => text.split_at(text.find('{').unwrap_or(text.len())),
    };
    let (name, id) = match head.split_once("[CALL_ID]") {
        Some((name, id)) => (name, Some(id.trim().to_owned())),
        None => (head, None),
    };
    calls.push_as(id, body, named(name, arguments));
}
