use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use turnwise_environment::{Action, CallAttempt, Message, Observation, Role, ToolCall, ToolSpec};
use turnwise_rollout::{RenderError, Rendered, Renderer};
use turnwise_trajectory::{Span, StopReason, TokenId};

use crate::canvas::Canvas;
use crate::fingerprint::fingerprint;
use crate::python_json::to_python_json;
use crate::truncate::middle_truncate;
use crate::{ChatError, Tokenizer, ToolPrompt, clean, parse_turn};

/// Part of every fingerprint. Counts up when the same settings come to mean other tokens.
const FORMAT: &str = "chatml 1";

const CLOSE: &str = "<|im_end|>";

/// The choices of [`ChatMl`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChatMlSettings {
    /// How the system block tells the model about its tools.
    pub tools: ToolPrompt,
    /// The most tokens of one message's text. A longer one loses its middle, with `[... N bytes omitted ...]` in its place.
    pub max_observation_tokens: usize,
}

impl Default for ChatMlSettings {
    fn default() -> Self {
        Self { tools: ToolPrompt::default(), max_observation_tokens: 8192 }
    }
}

/// The plain `ChatML` form, as the Qwen models write it:
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
/// - The newline after a close belongs to the *next* message: a model stops at its close and never writes it. So a bridge
///   begins with it, and a turn that is over ends in `<|im_end|>`.
/// - Text of messages is context and the rest scaffold. A token that holds both is context; see the crate's canvas.
/// - Tool messages become user blocks, each text between `<tool_response>` tags; neighbours share a block.
/// - Tools stand in the first system block, after the observation's own system message. Without a message to carry it,
///   the block is part of the lead-in to the model's turn.
/// - Text is [cleaned](crate::clean) and cut in the middle before it is encoded, without any control token.
/// - An assistant message of an observation (an example, another model) is context like any other; thinking stays.
/// - What the model drew is never rendered again.
///
/// Rendering never fails. An action that is written reads back as it was, up to the ids of its calls and blanks at the ends
/// of its text, unless its text or thinking spells a tag, or a call is malformed.
#[derive(Clone, Debug)]
pub struct ChatMl {
    tokenizer: Arc<Tokenizer>,
    settings: ChatMlSettings,
    fingerprint: String,
    close: TokenId,
    stop: Vec<TokenId>,
}

impl ChatMl {
    /// The form with this tokenizer. A turn ends at `<|im_end|>`, or at `<|endoftext|>` where the tokenizer has one.
    ///
    /// # Errors
    /// When `<|im_start|>` or `<|im_end|>` is not a token of the tokenizer.
    pub fn new(tokenizer: Arc<Tokenizer>, settings: ChatMlSettings) -> Result<Self, ChatError> {
        let control = |marker: &str| {
            let id = tokenizer.token_id(marker).filter(|id| tokenizer.is_control(*id));
            id.ok_or_else(|| ChatError::MissingMarker { marker: marker.to_owned() })
        };
        control("<|im_start|>")?;
        let close = control(CLOSE)?;
        let stop = [Some(close), control("<|endoftext|>").ok()].into_iter().flatten().collect();
        let written = serde_json::to_string(&settings).expect("settings are plain data");
        let identity = format!("{}\n{FORMAT}\n{written}", tokenizer.fingerprint());
        let fingerprint = fingerprint(identity.as_bytes());
        Ok(Self { tokenizer, settings, fingerprint, close, stop })
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &ChatMlSettings {
        &self.settings
    }

    fn writer(&self, n_messages: usize, separator: &'static str) -> Writer<'_> {
        // One more owner: the lead-in to the model's turn.
        let canvas = Canvas::new(&self.tokenizer, n_messages + 1);
        Writer { tokenizer: &self.tokenizer, settings: &self.settings, canvas, separator }
    }
}

impl Renderer for ChatMl {
    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn open(&self, observation: &Observation, tools: &[ToolSpec]) -> Result<Rendered, RenderError> {
        let messages = &observation.messages;
        let mut writer = self.writer(messages.len(), "");
        let n_written = writer.tools(tools, messages.first());
        writer.messages(messages, n_written);
        Ok(writer.finish(Vec::new()))
    }

    fn bridge(&self, stop: StopReason, observation: &Observation) -> Result<Rendered, RenderError> {
        let close = match stop {
            StopReason::EndOfTurn => Vec::new(),
            StopReason::MaxTokens | StopReason::Interrupted => vec![self.close],
        };
        let mut writer = self.writer(observation.messages.len(), "\n");
        writer.messages(&observation.messages, 0);
        Ok(writer.finish(close))
    }

    fn write(&self, action: &Action) -> Vec<TokenId> {
        let mut canvas = Canvas::new(&self.tokenizer, 1);
        let calls = action.calls.iter().map(|attempt| match attempt {
            CallAttempt::Call(call) => format!("\n{}\n", call_json(call)),
            CallAttempt::Malformed(call) => call.raw.clone(),
        });
        write_turn(&mut canvas, action.reasoning.as_deref(), &action.text, calls);
        canvas.template(CLOSE);
        ids_of(&canvas.finish().concat())
    }

    fn parse(&self, sampled: &[TokenId]) -> Action {
        // What a model drew after its close is no part of its turn.
        let turn = sampled.split(|id| self.stop.contains(id)).next().unwrap_or_default();
        parse_turn(&self.tokenizer.decode(turn))
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
    tokenizer: &'a Tokenizer,
    settings: &'a ChatMlSettings,
    canvas: Canvas<'a>,
    /// What stands before the next block.
    separator: &'static str,
}

impl Writer<'_> {
    /// The system block with the tools. Answers how many messages are in it: one if the first is a system message.
    fn tools(&mut self, tools: &[ToolSpec], first: Option<&Message>) -> usize {
        if tools.is_empty() || self.settings.tools == ToolPrompt::Omit {
            return 0;
        }
        let system = first.filter(|message| message.role == Role::System);
        self.header("system\n");
        if let Some(message) = system {
            self.say(&message.content);
            self.canvas.template("\n\n");
        }
        self.settings.tools.write(tools, &mut self.canvas);
        self.canvas.template(CLOSE);
        usize::from(system.is_some())
    }

    fn messages(&mut self, messages: &[Message], n_written: usize) {
        for (index, message) in messages.iter().enumerate().skip(n_written) {
            self.canvas.set_owner(index);
            match message.role {
                Role::System => self.block("system\n", message),
                Role::User => self.block("user\n", message),
                Role::Assistant => self.assistant(message),
                Role::Tool => {
                    let is_tool = |other: Option<&Message>| {
                        other.is_some_and(|message| message.role == Role::Tool)
                    };
                    let before = index.checked_sub(1).and_then(|before| messages.get(before));
                    self.tool(message, !is_tool(before), !is_tool(messages.get(index + 1)));
                }
            }
        }
        self.canvas.set_owner(messages.len());
    }

    fn block(&mut self, header: &str, message: &Message) {
        self.header(header);
        self.say(&message.content);
        self.canvas.template(CLOSE);
    }

    fn tool(&mut self, message: &Message, opens_block: bool, closes_block: bool) {
        if opens_block {
            self.header("user");
        }
        self.canvas.template("\n<tool_response>\n");
        self.say(&message.content);
        self.canvas.template("\n</tool_response>");
        if closes_block {
            self.canvas.template(CLOSE);
        }
    }

    fn assistant(&mut self, message: &Message) {
        self.header("assistant\n");
        let reasoning = message.reasoning.as_ref().map(|text| self.heard(text));
        let text = self.heard(&message.content);
        let calls = message.tool_calls.iter().map(|call| {
            let call = call_json(call);
            format!("\n{}\n", self.heard(&call))
        });
        let calls: Vec<String> = calls.collect();
        write_turn(&mut self.canvas, reasoning.as_deref(), &text, calls);
        self.canvas.template(CLOSE);
    }

    fn header(&mut self, role: &str) {
        self.canvas.template(self.separator);
        self.canvas.template("<|im_start|>");
        self.canvas.template(role);
        self.separator = "\n";
    }

    fn say(&mut self, text: &str) {
        let text = self.heard(text);
        self.canvas.content(&text);
    }

    /// What of a message's text reaches the model.
    fn heard(&self, text: &str) -> String {
        let limit = self.settings.max_observation_tokens;
        middle_truncate(self.tokenizer, &clean(text), limit).into_owned()
    }

    fn finish(mut self, close: Vec<TokenId>) -> Rendered {
        self.header("assistant\n");
        let mut messages = self.canvas.finish();
        let generation = ids_of(&messages.pop().unwrap_or_default());
        Rendered { close, messages, generation }
    }
}

/// Writes an assistant's turn up to its close. A call is what stands between the tags.
fn write_turn(
    canvas: &mut Canvas<'_>,
    reasoning: Option<&str>,
    text: &str,
    calls: impl IntoIterator<Item = String>,
) {
    if let Some(reasoning) = reasoning {
        canvas.template("<think>\n");
        canvas.content(reasoning);
        canvas.template("\n</think>\n\n");
    }
    canvas.content(text);
    for (index, call) in calls.into_iter().enumerate() {
        canvas.template(if index == 0 && text.is_empty() { "" } else { "\n" });
        canvas.template("<tool_call>");
        canvas.content(&call);
        canvas.template("</tool_call>");
    }
}

/// A closing tag inside a string of the call is written so that it does not end the call.
fn call_json(call: &ToolCall) -> String {
    let name = to_python_json(&Value::from(call.name.as_str()));
    let arguments = match &call.arguments {
        // The Qwen templates take a string for JSON that is already written.
        Value::String(written) => written.clone(),
        arguments => to_python_json(arguments),
    };
    let json = format!("{{\"name\": {name}, \"arguments\": {arguments}}}");
    json.replace("</tool_call>", "\\u003c/tool_call>")
}

fn ids_of(spans: &[Span]) -> Vec<TokenId> {
    let mut ids = Vec::new();
    for span in spans {
        span.extend_ids(&mut ids);
    }
    ids
}
