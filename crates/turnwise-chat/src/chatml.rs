use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use turnwise_environment::{Action, CallAttempt, Message, Role, ToolCall, ToolSpec};
use turnwise_rollout::{Bridged, EndedTurn, RenderError, Rendered, Renderer, Said};
use turnwise_trajectory::{Span, TokenId};

use crate::canvas::Canvas;
use crate::demonstrated::after_prefill;
use crate::fingerprint::fingerprint;
use crate::python_json::to_python_json;
use crate::thinking::{self, Thinking};
use crate::tool_calls::check_calls;
use crate::truncate::{heard, is_heard_in_part};
use crate::turn::before_stop;
use crate::{ChatError, Tokenizer, ToolPrompt, parse_turn};

/// Part of every fingerprint. It is incremented when the same settings give other tokens.
const FORMAT: &str = "chatml 4";

const CLOSE: &str = "<|im_end|>";

/// Settings of [`ChatMl`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChatMlSettings {
    /// How the system block describes the tools.
    pub tools: ToolPrompt,
    /// The most tokens of one message's text after the first turn. The middle of a longer text is replaced by `[... N
    /// bytes omitted ...]`. Messages before the first turn are the task, and are not truncated.
    pub max_observation_tokens: usize,
    /// Additional control tokens that end a turn, such as those of the model's `generation_config.json`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// The treatment of thinking in past turns.
    pub thinking: Thinking,
    /// Whether the model may think; otherwise each of its turns starts with an empty thinking block.
    pub enable_thinking: bool,
}

impl Default for ChatMlSettings {
    fn default() -> Self {
        Self {
            tools: ToolPrompt::default(),
            max_observation_tokens: 8192,
            stop: Vec::new(),
            thinking: Thinking::default(),
            enable_thinking: true,
        }
    }
}

/// The plain `ChatML` format of the Qwen models:
///
/// ```text
/// <|im_start|>system
/// Be brief.<|im_end|>
/// <|im_start|>user
/// What is 3 + 5?<|im_end|>
/// <|im_start|>assistant
/// 8<|im_end|>
/// <|im_start|>user
/// …
/// ```
///
/// - The newline after a close belongs to the *next* message: a model stops at its close and never writes it. So a
///   bridge starts with it, and a finished turn ends in `<|im_end|>`.
/// - Text of messages is context and the rest scaffold. A token that contains both is context.
/// - Tool messages become user blocks, each text between `<tool_response>` tags; consecutive ones share a block.
/// - Tools are described in the first system block, after the observation's own system message. Without such a message,
///   the block is part of the lead-in to the model's turn.
/// - Text is [cleaned](crate::clean) and truncated in the middle before it is encoded, without any control token.
/// - An assistant message of an observation (an example, another model) is context like any other.
/// - Sampled tokens are never encoded again: when the whole conversation is rendered, sampled turns are copied
///   unchanged, up to their close.
/// - [`Thinking::Follow`] is Qwen 3's published template: it keeps thinking only after the last user message that is
///   not a tool's answer. After it, the last assistant message always has a thinking block, and others have one if they
///   have thoughts. [`Thinking::Keep`] keeps all thinking.
///
/// Rendering never fails. Parsing a written action gives the same action, up to the ids of its calls and blanks at the
/// ends of its text, unless its text or thinking contains a tag, or a call is malformed.
#[derive(Clone, Debug)]
pub struct ChatMl {
    tokenizer: Arc<Tokenizer>,
    settings: ChatMlSettings,
    fingerprint: String,
    close: TokenId,
    stop: Vec<TokenId>,
}

impl ChatMl {
    /// Creates the renderer with this tokenizer. A turn ends at `<|im_end|>`, or at `<|endoftext|>` if the tokenizer
    /// has it.
    ///
    /// # Errors
    /// When `<|im_start|>`, `<|im_end|>` or a token of `settings.stop` is not a control token of the tokenizer.
    pub fn new(tokenizer: Arc<Tokenizer>, mut settings: ChatMlSettings) -> Result<Self, ChatError> {
        let control = |marker: &str| tokenizer.control(marker);
        control("<|im_start|>")?;
        let close = control(CLOSE)?;
        let usual = [Some(close), control("<|endoftext|>").ok()].into_iter().flatten().collect();
        let stop = with_further_ends(&tokenizer, usual, &mut settings.stop)?;
        let written = serde_json::to_string(&settings).expect("settings are plain data");
        let identity = format!("{}\n{FORMAT}\n{written}", tokenizer.fingerprint());
        let fingerprint = fingerprint(identity.as_bytes());
        Ok(Self { tokenizer, settings, fingerprint, close, stop })
    }

    /// Returns the tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Returns the settings.
    #[must_use]
    pub fn settings(&self) -> &ChatMlSettings {
        &self.settings
    }

    /// Returns the format as a Jinja template: `transformers` then makes the same prompts as this renderer. The
    /// template does not handle text that contains names of control tokens, nor long observations.
    #[must_use]
    pub fn template(&self) -> String {
        let text = |text: &str| serde_json::to_string(text).expect("a text can be written");
        let (style, open, close) = self.settings.tools.parts();
        format!(
            "{{%- set keeps_thinking = {} -%}}\n{{%- set may_think = {} -%}}\n{{%- set tools_are = {} -%}}\n\
             {{%- set tools_open = {} -%}}\n{{%- set tools_close = {} -%}}\n{}",
            self.settings.thinking == Thinking::Keep,
            self.settings.enable_thinking,
            text(style),
            text(open),
            text(close),
            include_str!("chatml.jinja").trim_end(),
        )
    }

    fn writer(&self, n_messages: usize, separator: &'static str) -> Writer<'_> {
        // Two more owners: the lead-in to the model's turn, and the text that is forced at its start.
        let canvas = if separator.is_empty() {
            Canvas::new(&self.tokenizer, n_messages + 2)
        } else {
            Canvas::after(&self.tokenizer, CLOSE, n_messages + 2)
        };
        Writer { chat: self, canvas, separator, last_query: None, n_messages, n_task: 0 }
    }

    /// Returns whether the template keeps the turns before `new` unchanged.
    fn is_appended(&self, ended: EndedTurn<'_>, history: &[Said<'_>], new: &[Message]) -> bool {
        let close = ended.ids.iter().position(|id| self.stop.contains(id));
        if close.is_some_and(|at| at + 1 < ended.ids.len()) {
            return false;
        }
        if self.settings.thinking == Thinking::Keep {
            return true;
        }
        let is_closed = close.is_none_or(|at| ended.ids[at] == self.close);
        let since = thinking::last_query(history.iter().map(|said| said.message)).unwrap_or(0);
        let mut turns = history[since..].iter().filter(|said| said.message.role == Role::Assistant);
        let is_stripped =
            new.iter().any(thinking::is_query) && turns.any(|turn| self.has_thoughts(turn));
        // An example just before the turn was the last message, and now is not.
        let was_last = history.iter().rev().nth(1);
        let is_example = was_last
            .is_some_and(|said| said.drawn.is_none() && said.message.role == Role::Assistant);
        // So was the turn itself, whose empty thinking block is now dropped.
        let turn = history.last().and_then(|said| said.drawn).unwrap_or(ended.ids);
        let loses_block = thinking::is_empty_block(&self.tokenizer.decode(turn));
        is_closed && !is_stripped && !is_example && !loses_block
    }

    fn has_thoughts(&self, said: &Said<'_>) -> bool {
        match said.drawn {
            Some(ids) => self.tokenizer.decode(ids).contains(thinking::CLOSE),
            None => thinking::split(said.message).0.is_some(),
        }
    }
}

impl Renderer for ChatMl {
    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn render(
        &self,
        conversation: &[Said<'_>],
        tools: &[ToolSpec],
    ) -> Result<Rendered, RenderError> {
        let mut writer = self.writer(conversation.len(), "");
        writer.n_task = n_task(conversation);
        let n_written = writer.tools(tools, conversation.first().map(|said| said.message));
        writer.last_query = thinking::last_query(conversation.iter().map(|said| said.message));
        writer.messages(conversation, n_written);
        Ok(writer.finish(Vec::new()))
    }

    fn bridge(
        &self,
        ended: EndedTurn<'_>,
        history: &[Said<'_>],
        new: &[Message],
    ) -> Result<Bridged, RenderError> {
        if !self.is_appended(ended, history, new) {
            return Ok(Bridged::Rewrite);
        }
        let is_closed = ended.ids.last() == Some(&self.close);
        let close = if is_closed { Vec::new() } else { vec![self.close] };
        let new: Vec<Said<'_>> = new.iter().map(Said::new).collect();
        let mut writer = self.writer(new.len(), "\n");
        writer.last_query = thinking::last_query(new.iter().map(|said| said.message));
        writer.messages(&new, 0);
        Ok(Bridged::Append(writer.finish(close)))
    }

    fn write(&self, action: &Action) -> Vec<TokenId> {
        let mut canvas = Canvas::new(&self.tokenizer, 1);
        hermes_turn(&mut canvas, action);
        canvas.template(CLOSE);
        ids_of(&canvas.finish().concat())
    }

    fn write_after(&self, prefill: &[TokenId], action: &Action) -> Vec<TokenId> {
        after_prefill(&self.tokenizer, prefill, action, |action| self.write(action))
    }

    fn parse(&self, turn: &[TokenId], tools: &[ToolSpec]) -> Action {
        let turn = before_stop(turn, &self.stop);
        check_calls(parse_turn(&self.tokenizer.decode(turn)), tools)
    }

    fn shortens(&self, message: &Message, _tools: &[ToolSpec]) -> bool {
        let limit = self.settings.max_observation_tokens;
        let is_longer = |text: &str| is_heard_in_part(&self.tokenizer, text, limit);
        if message.role != Role::Assistant {
            return is_longer(&message.content);
        }
        let (reasoning, content) = match self.settings.thinking {
            Thinking::Follow => thinking::split(message),
            Thinking::Keep => (message.reasoning.as_deref(), message.content.as_str()),
        };
        let mut texts = reasoning.into_iter().chain([content]);
        texts.any(is_longer) || message.tool_calls.iter().any(|call| is_longer(&call_json(call)))
    }

    fn stop_tokens(&self) -> &[TokenId] {
        &self.stop
    }

    fn text(&self, ids: &[TokenId]) -> String {
        self.tokenizer.decode(ids)
    }
}

/// Writes a conversation block by block.
struct Writer<'a> {
    chat: &'a ChatMl,
    canvas: Canvas<'a>,
    /// Written before the next block.
    separator: &'static str,
    /// Thinking is kept after this message.
    last_query: Option<usize>,
    n_messages: usize,
    /// The number of messages before the first turn, which are the task.
    n_task: usize,
}

impl Writer<'_> {
    /// Writes the system block with the tools and returns the number of messages in it: one if the first is a system
    /// message.
    fn tools(&mut self, tools: &[ToolSpec], first: Option<&Message>) -> usize {
        if tools.is_empty() || self.chat.settings.tools == ToolPrompt::Omit {
            return 0;
        }
        let system = first.filter(|message| message.role == Role::System);
        self.header("system\n");
        if let Some(message) = system {
            self.say(0, &message.content);
            self.canvas.template("\n\n");
        }
        self.chat.settings.tools.write(tools, &mut self.canvas);
        self.canvas.template(CLOSE);
        usize::from(system.is_some())
    }

    fn messages(&mut self, messages: &[Said<'_>], n_written: usize) {
        for (index, said) in messages.iter().enumerate().skip(n_written) {
            let message = said.message;
            self.canvas.set_owner(index);
            match (message.role, said.drawn) {
                (Role::System, _) => self.block("system\n", index, message),
                (Role::User, _) => self.block("user\n", index, message),
                (Role::Assistant, Some(ids)) => self.turn(index, ids),
                (Role::Assistant, None) => self.assistant(index, message),
                (Role::Tool, _) => {
                    let is_tool = |other: Option<&Said<'_>>| {
                        other.is_some_and(|said| said.message.role == Role::Tool)
                    };
                    let before = index.checked_sub(1).and_then(|before| messages.get(before));
                    let after = messages.get(index + 1);
                    self.tool(index, message, !is_tool(before), !is_tool(after));
                }
            }
        }
        self.canvas.set_owner(messages.len());
    }

    fn block(&mut self, header: &str, index: usize, message: &Message) {
        self.header(header);
        self.say(index, &message.content);
        self.canvas.template(CLOSE);
    }

    fn tool(&mut self, index: usize, message: &Message, opens_block: bool, closes_block: bool) {
        if opens_block {
            self.header("user");
        }
        self.canvas.template("\n<tool_response>\n");
        self.say(index, &message.content);
        self.canvas.template("\n</tool_response>");
        if closes_block {
            self.canvas.template(CLOSE);
        }
    }

    /// Writes a sampled turn, up to its close.
    fn turn(&mut self, index: usize, drawn: &[TokenId]) {
        let chat = self.chat;
        let turn = before_stop(drawn, &chat.stop);
        self.header("assistant\n");
        let follows = chat.settings.thinking == Thinking::Follow;
        let is_last = index + 1 == self.n_messages;
        let loses_block =
            follows && !is_last && thinking::is_empty_block(&chat.tokenizer.decode(turn));
        if self.keeps_thinking(index) && !loses_block {
            self.canvas.verbatim(turn);
        } else {
            thinking::strip(&chat.tokenizer, turn, &mut self.canvas);
        }
        self.canvas.template(CLOSE);
    }

    fn keeps_thinking(&self, index: usize) -> bool {
        let is_recent = self.last_query.is_some_and(|last| index > last);
        self.chat.settings.thinking == Thinking::Keep || is_recent
    }

    fn assistant(&mut self, index: usize, message: &Message) {
        self.header("assistant\n");
        let (mut reasoning, mut content) = (message.reasoning.clone(), message.content.clone());
        let mut has_text = !content.is_empty();
        if self.chat.settings.thinking == Thinking::Follow {
            let (thoughts, rest) = thinking::split(message);
            (reasoning, content) = (thoughts.map(str::to_owned), rest.to_owned());
            let is_last = index + 1 == self.n_messages;
            let has_block = self.keeps_thinking(index) && (is_last || reasoning.is_some());
            has_text = !content.is_empty();
            reasoning = has_block.then(|| reasoning.unwrap_or_default());
            if has_block {
                content = content.trim_start_matches('\n').to_owned();
            }
        }
        let reasoning = reasoning.map(|text| self.heard(index, &text));
        let text = self.heard(index, &content);
        let calls = message.tool_calls.iter().map(|call| {
            let call = call_json(call);
            format!("\n{}\n", self.heard(index, &call))
        });
        let calls: Vec<String> = calls.collect();
        write_turn(&mut self.canvas, reasoning.as_deref(), (&text, has_text), calls);
        self.canvas.template(CLOSE);
    }

    fn header(&mut self, role: &str) {
        self.canvas.template(self.separator);
        self.canvas.template("<|im_start|>");
        self.canvas.template(role);
        self.separator = "\n";
    }

    fn say(&mut self, index: usize, text: &str) {
        let text = self.heard(index, text);
        self.canvas.content(&text);
    }

    /// Returns the part of a message's text that the model sees.
    fn heard(&self, index: usize, text: &str) -> String {
        let is_task = index < self.n_task;
        let limit = if is_task { usize::MAX } else { self.chat.settings.max_observation_tokens };
        heard(&self.chat.tokenizer, text, limit)
    }

    fn finish(mut self, close: Vec<TokenId>) -> Rendered {
        self.header("assistant\n");
        self.canvas.set_owner(self.n_messages + 1);
        if !self.chat.settings.enable_thinking {
            self.canvas.template(thinking::EMPTY);
        }
        let mut messages = self.canvas.finish();
        let prefill = ids_of(&messages.pop().unwrap_or_default());
        let generation = ids_of(&messages.pop().unwrap_or_default());
        Rendered { close, messages, generation, prefill }
    }
}

/// Writes an action, up to its close.
pub(crate) fn hermes_turn(canvas: &mut Canvas<'_>, action: &Action) {
    let calls = action.calls.iter().map(|attempt| match attempt {
        CallAttempt::Call(call) => format!("\n{}\n", call_json(call)),
        CallAttempt::Malformed(call) => call.raw.clone(),
    });
    let has_text = !action.text.is_empty();
    write_turn(canvas, action.reasoning.as_deref(), (&action.text, has_text), calls);
}

/// Writes an assistant's turn, up to its close. A call is the text between the tags; the template separates the first
/// call from text, even from text whose line breaks it has trimmed.
fn write_turn(
    canvas: &mut Canvas<'_>,
    reasoning: Option<&str>,
    (text, has_text): (&str, bool),
    calls: impl IntoIterator<Item = String>,
) {
    if let Some(reasoning) = reasoning {
        canvas.template("<think>\n");
        canvas.content(reasoning);
        canvas.template("\n</think>\n\n");
    }
    canvas.content(text);
    for (index, call) in calls.into_iter().enumerate() {
        canvas.template(if index == 0 && !has_text { "" } else { "\n" });
        canvas.template("<tool_call>");
        canvas.content(&call);
        canvas.template("</tool_call>");
    }
}

/// Escapes a closing tag inside a string of the call, so that it does not end the call.
fn call_json(call: &ToolCall) -> String {
    let name = to_python_json(&Value::from(call.name.as_str()));
    let arguments = match &call.arguments {
        // The Qwen templates treat a string as JSON text.
        Value::String(written) => written.clone(),
        arguments => to_python_json(arguments),
    };
    let json = format!("{{\"name\": {name}, \"arguments\": {arguments}}}");
    json.replace("</tool_call>", "\\u003c/tool_call>")
}

/// Merges a format's own end tokens with additional ones, without repetitions and in a fixed order.
pub(crate) fn with_further_ends(
    tokenizer: &Tokenizer,
    mut own: Vec<TokenId>,
    further: &mut Vec<String>,
) -> Result<Vec<TokenId>, ChatError> {
    let ids: Result<Vec<TokenId>, ChatError> =
        further.iter().map(|marker| tokenizer.control(marker)).collect();
    let mut new: Vec<(TokenId, String)> = ids?.into_iter().zip(std::mem::take(further)).collect();
    new.retain(|(id, _)| !own.contains(id));
    new.sort_unstable();
    new.dedup();
    own.extend(new.iter().map(|(id, _)| *id));
    further.extend(new.into_iter().map(|(_, marker)| marker));
    Ok(own)
}

/// Returns the number of messages before the first turn: the task.
pub(crate) fn n_task(conversation: &[Said<'_>]) -> usize {
    conversation.iter().take_while(|said| said.message.role != Role::Assistant).count()
}

pub(crate) fn ids_of(spans: &[Span]) -> Vec<TokenId> {
    let mut ids = Vec::new();
    for span in spans {
        span.extend_ids(&mut ids);
    }
    ids
}
