use serde_json::{Map, Value, json};
use turnwise_environment::{Action, CallAttempt, CallError, MalformedCall, ToolCall, ToolSpec};

use crate::call_bodies::{self, Calls};
use crate::{call_notation, schema, strict_json, thinking};

/// The most bytes of a call that are parsed.
pub const MAX_CALL_BYTES: usize = 64 * 1024;

#[derive(Clone, Copy)]
struct Tag {
    open: &'static str,
    /// Empty: the end of the turn, or the same tag again.
    close: &'static str,
    holds: Holds,
}

#[derive(Clone, Copy)]
enum Holds {
    Thinking,
    /// One call, which must be closed.
    Call,
    /// Calls in the format that this function parses.
    Calls(fn(&mut Calls, &str)),
    /// A function's name, and its arguments up to the close.
    Function,
    /// A message with a channel.
    Channel,
    /// Text for the user.
    Text,
}

const fn tag(open: &'static str, close: &'static str, holds: Holds) -> Tag {
    Tag { open, close, holds }
}

const TAGS: [Tag; 32] = [
    tag("<tool_call>", "</tool_call>", Holds::Call),
    tag("<seed:tool_call>", "</seed:tool_call>", Holds::Call),
    tag("<zyphra_tool_call>", "</zyphra_tool_call>", Holds::Call),
    tag("<longcat_tool_call>", "</longcat_tool_call>", Holds::Call),
    tag("<function=", "</function>", Holds::Function),
    tag("<function name=", "</function>", Holds::Calls(call_bodies::parameters)),
    tag("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", Holds::Calls(call_bodies::deepseek)),
    tag(
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>",
        Holds::Calls(call_bodies::kimi),
    ),
    tag("<minimax:tool_call>", "</minimax:tool_call>", Holds::Calls(call_bodies::invokes)),
    tag("<atem:function_calls>", "</atem:function_calls>", Holds::Calls(call_bodies::invokes)),
    tag(
        "<｜DSML｜function_calls>",
        "</｜DSML｜function_calls>",
        Holds::Calls(call_bodies::invokes),
    ),
    tag("<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>", Holds::Calls(call_bodies::invokes)),
    tag("<｜tool_calls_begin｜>", "<｜tool_calls_end｜>", Holds::Calls(call_bodies::invokes)),
    tag("<tool_calls>", "</tool_calls>", Holds::Calls(call_bodies::list)),
    tag(
        "<tool_calls:opensource>",
        "</tool_calls:opensource>",
        Holds::Calls(call_bodies::opensource),
    ),
    tag("<TOOLCALL>", "</TOOLCALL>", Holds::Calls(call_bodies::list)),
    tag("<|START_ACTION|>", "<|END_ACTION|>", Holds::Calls(call_bodies::list)),
    tag("<|tools_prefix|>", "<|tools_suffix|>", Holds::Calls(call_bodies::list)),
    tag("<|action_start|><|plugin|>", "<|action_end|>", Holds::Calls(call_bodies::list)),
    tag("<|tool_call|>", "<|/tool_call|>", Holds::Calls(call_bodies::mistral)),
    tag("<|function_call|>", "", Holds::Calls(call_bodies::mistral)),
    tag("[TOOL_CALLS]", "", Holds::Calls(call_bodies::mistral)),
    tag("<|CALL_START|>", "<|CALL_END|>", Holds::Calls(call_bodies::step)),
    tag("<|tool_call:begin|>", "<|tool_call:end|>", Holds::Calls(call_bodies::solar)),
    tag("<|tool_call:start|>", "<|tool_call:end|>", Holds::Calls(call_bodies::solar_arguments)),
    tag("<|tool_call_start|>", "<|tool_call_end|>", Holds::Calls(call_notation::python)),
    tag("<function_calls>", "</function_calls>", Holds::Calls(call_notation::python)),
    tag("<start_function_call>", "<end_function_call>", Holds::Calls(call_notation::gemma)),
    tag("<|tool_call>", "<tool_call|>", Holds::Calls(call_notation::gemma)),
    tag("<|channel|>", "", Holds::Channel),
    tag("<|START_RESPONSE|>", "<|END_RESPONSE|>", Holds::Text),
    tag("<|START_TEXT|>", "<|END_TEXT|>", Holds::Text),
];

/// The mark that `MiniMax` M3 writes before each tag of a call.
pub(crate) const MINIMAX_MARK: &str = "]<]minimax[>[";

/// Parses the text of one turn: thinking, tool calls in the Hermes format, and other text.
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
/// Other formats of calls are supported too, each by its own tags: parameters in XML
/// (`<function=stock><parameter=part>`, Qwen3-Coder, Nemotron), keys and values (GLM), calls of Python (LFM2, Olmo 3) and
/// of Gemma, the formats of `DeepSeek`, Kimi, `MiniMax`, Mistral, Command, Phi-4-mini, Jamba, Apertus, Step, Solar and
/// `LongCat`, and the channels of gpt-oss. A value in plain text is a string here; the tool's schema decides its final
/// type ([`Renderer::parse`](turnwise_rollout::Renderer::parse)).
///
/// Never fails, and takes time linear in the text. Every case is defined:
///
/// - Only the text matters, not whether a tag was sampled as one token or letter by letter, as in serving stacks.
/// - The first closing tag ends a call, even inside a JSON string. A closing tag without an opening is text.
/// - A call in thinking is thinking. Thinking that is not closed extends to the end. A code fence has no meaning.
/// - A call that is not closed, has an unknown format, a duplicate key, an integer of more than 64 bits, a depth of 128
///   or no name: `decode`.
/// - A call of more than [`MAX_CALL_BYTES`]: `too_large`. Arguments that are not an object: `invalid_args`.
/// - Missing arguments are `{}`. Arguments as a string that contains an object are that object: the wire format of chat
///   endpoints, which models have seen. Other keys of the call are ignored. Names and schemas are checked by
///   [`Renderer::parse`](turnwise_rollout::Renderer::parse), which knows the tools.
///
/// Text and thinking are trimmed, and joined by a newline where tags divide them. Calls are numbered `call_0`,
/// `call_1`, … within the turn, malformed ones included: a turn does not know the number of earlier calls, and answers
/// come before the next turn's calls. An id that the turn writes is shown again by [`TemplateRenderer`](crate::TemplateRenderer).
///
/// ```
/// let action = turnwise_chat::parse_turn("<tool_call>{\"name\": \"roll\"}</tool_call> Good luck!");
/// assert_eq!(action.tool_calls().next().map(|call| call.name.as_str()), Some("roll"));
/// assert_eq!(action.text, "Good luck!");
/// ```
#[must_use]
pub fn parse_turn(text: &str) -> Action {
    parse_with_ids(text).0
}

/// Parses a turn as [`parse_turn`] does, and returns the id that it writes for each call.
pub(crate) fn parse_with_ids(text: &str) -> (Action, Vec<Option<String>>) {
    let (mut said, mut thought, mut calls) = (Vec::new(), Vec::new(), Calls::default());
    let mut rest = Some(text);
    while let Some(text) = rest {
        let Some((at, tag)) = first_opening(text) else {
            said.push(text);
            break;
        };
        let (before, inside) = (&text[..at], &text[at + tag.open.len()..]);
        if !matches!(tag.holds, Holds::Channel) {
            said.push(before.strip_suffix(MINIMAX_MARK).unwrap_or(before));
        }
        let (body, after) = split(inside, tag);
        match tag.holds {
            Holds::Thinking => thought.push(body),
            Holds::Text => said.push(body),
            Holds::Call | Holds::Function if after.is_none() => calls.push(body, Err(unclosed())),
            Holds::Call => call_bodies::call(&mut calls, body),
            Holds::Calls(read) => read(&mut calls, body),
            Holds::Function => call_bodies::function(&mut calls, body),
            Holds::Channel => {
                let (recipient, before) = recipient_in(before);
                said.push(before);
                channel(recipient, body, &mut said, &mut thought, &mut calls);
            }
        }
        rest = after;
    }
    let reasoning = Some(join(&thought)).filter(|thought| !thought.is_empty());
    (Action { text: join(&said), reasoning, calls: calls.all }, calls.ids)
}

fn first_opening(text: &str) -> Option<(usize, Tag)> {
    let thoughts = thinking::TAGS.map(|tags| tag(tags.open, tags.close, Holds::Thinking));
    let tag_at =
        |at: usize| thoughts.into_iter().chain(TAGS).find(|tag| text[at..].starts_with(tag.open));
    text.match_indices(['<', '[']).find_map(|(at, _)| Some((at, tag_at(at)?)))
}

/// Splits the text after a tag into its content and the text after its close; the latter is `None` without a close.
fn split(inside: &str, tag: Tag) -> (&str, Option<&str>) {
    if matches!(tag.holds, Holds::Channel) {
        let ends = ["<|end|>", "<|return|>", "<|call|>", "<|start|>", "<|channel|>"];
        let end = inside.match_indices("<|").find_map(|(at, _)| {
            let end = ends.iter().find(|end| inside[at..].starts_with(**end))?;
            Some((at, *end))
        });
        let Some((at, end)) = end else { return (inside, None) };
        let is_own = end != "<|start|>" && end != "<|channel|>";
        return (&inside[..at], Some(&inside[at + if is_own { end.len() } else { 0 }..]));
    }
    if tag.close.is_empty() {
        return match inside.find(tag.open) {
            Some(at) => (&inside[..at], Some(&inside[at..])),
            None => (inside, None),
        };
    }
    inside.split_once(tag.close).map_or((inside, None), |(body, after)| (body, Some(after)))
}

/// Returns the recipient in a message's header before its channel, and the text before the header.
fn recipient_in(before: &str) -> (&str, &str) {
    let (said, header) = before.rsplit_once("<|start|>").unwrap_or_else(|| {
        let is_header = before.trim_start().starts_with("to=");
        if is_header { ("", before) } else { (before, "") }
    });
    (header.split_once("to=").map_or("", |(_, recipient)| recipient), said)
}

/// Parses a message in the format of gpt-oss: its channel, an optional recipient, and its text.
fn channel<'a>(
    recipient: &'a str,
    message: &'a str,
    said: &mut Vec<&'a str>,
    thought: &mut Vec<&'a str>,
    calls: &mut Calls,
) {
    let Some((header, body)) = message.split_once("<|message|>") else {
        return said.push(message);
    };
    let recipient = header.split_once("to=").map_or(recipient, |(_, recipient)| recipient);
    let recipient = recipient.split([' ', '<']).next().unwrap_or_default();
    match recipient.strip_prefix("functions.") {
        Some(name) => calls.push(body, call_bodies::named(name, body)),
        None if header.trim_start().starts_with("analysis") => thought.push(body),
        None => said.push(body),
    }
}

fn join(pieces: &[&str]) -> String {
    let pieces: Vec<&str> =
        pieces.iter().map(|piece| piece.trim()).filter(|piece| !piece.is_empty()).collect();
    pieces.join("\n")
}

/// Returns a call with its id, or the malformed text with the reason.
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

/// Checks the calls of a turn against the tools' schemas: a call that does not fit is replaced by its mistake. Without
/// tools, every call stays.
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

pub(crate) fn unclosed() -> Mistake {
    (CallError::Decode, "the call has no closing tag".to_owned())
}

/// Rejects a body that is too long.
pub(crate) fn check_length(body: &str) -> Result<(), Mistake> {
    if body.len() <= MAX_CALL_BYTES {
        return Ok(());
    }
    let message = format!("the call has {} bytes; at most {MAX_CALL_BYTES} are read", body.len());
    Err((CallError::TooLarge, message))
}

/// Parses JSON, also with dictionaries of Python in it, as some templates print arguments.
pub(crate) fn read_json(body: &str) -> Result<Value, Mistake> {
    strict_json::from_str(body).or_else(|error| {
        let is_python = body.contains("{'");
        is_python
            .then(|| call_notation::literal(body).ok())
            .flatten()
            .ok_or_else(|| (CallError::Decode, format!("the call cannot be read as JSON: {error}")))
    })
}

/// Parses a call whose arguments are under this key.
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

pub(crate) fn read_arguments(arguments: Option<Value>) -> Result<Value, Mistake> {
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
