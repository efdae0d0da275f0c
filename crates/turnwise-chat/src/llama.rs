use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use turnwise_environment::{Action, CallAttempt, Message, Role, ToolCall, ToolSpec};
use turnwise_rollout::{Bridged, EndedTurn, RenderError, Rendered, Renderer, Said};
use turnwise_trajectory::TokenId;

use crate::canvas::Canvas;
use crate::chatml::{ids_of, n_task, with_further_ends};
use crate::demonstrated::after_prefill;
use crate::fingerprint::fingerprint;
use crate::llama_calls::parse_llama_turn;
use crate::python_json::{to_indented_json, to_python_json};
use crate::tool_calls::check_calls;
use crate::truncate::{heard, is_heard_in_part};
use crate::turn::before_stop;
use crate::{ChatError, Tokenizer};

/// Part of every fingerprint. It is incremented when the same settings give other tokens.
const FORMAT: &str = "llama3 2";

const CLOSE: &str = "<|eot_id|>";
/// Other tokens that end a turn, if the tokenizer has them.
const OTHER_STOPS: [&str; 2] = ["<|eom_id|>", "<|end_of_text|>"];

/// Verbatim from the Llama 3.1 template, like the texts below.
const CALL_FORM: &str = "Respond in the format {\"name\": function name, \"parameters\": dictionary of argument name \
    and its value}.Do not use variables.\n\n";
const TOOLS_FOR_USER: &str = "Given the following functions, please respond with a JSON for a function call with its \
    proper arguments that best answers the given prompt.\n\n";
const TOOLS_FOR_SYSTEM: &str = "You have access to the following functions. To call a function, please respond with JSON \
    for a function call.";

/// Settings of [`Llama3`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Llama3Settings {
    /// The date in the system block. It is fixed: a prompt must not depend on when it is rendered.
    pub date: String,
    /// Whether the tools are described in the first user message; otherwise in the system block.
    pub tools_in_user_message: bool,
    /// The most tokens of one message's text after the first turn. The middle of a longer text is replaced by `[... N
    /// bytes omitted ...]`. Messages before the first turn are the task, and are not truncated.
    pub max_observation_tokens: usize,
    /// Additional control tokens that end a turn, such as those of the model's `generation_config.json`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
}

impl Default for Llama3Settings {
    fn default() -> Self {
        Self {
            date: "26 Jul 2024".to_owned(),
            tools_in_user_message: true,
            max_observation_tokens: 8192,
            stop: Vec::new(),
        }
    }
}

/// The format of Llama 3.1 and its successors, as in their published template:
///
/// ```text
/// <|begin_of_text|><|start_header_id|>system<|end_header_id|>
///
/// Cutting Knowledge Date: December 2023
/// Today Date: 26 Jul 2024
///
/// Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>
///
/// What is 3 + 5?<|eot_id|><|start_header_id|>assistant<|end_header_id|>
///
/// 8<|eot_id|>…
/// ```
///
/// - Every prompt has one system block, which is part of the first message.
/// - Text of users and of the system is trimmed, as in the published template. Text of the assistant is not, unlike in
///   that template: a sampled turn stays unchanged, and a template cannot tell it from other assistant text.
/// - Tools' answers are JSON strings, as in the template, which treats any text as iterable.
/// - An assistant message with calls consists of its one call; its text is dropped. More than one call in a message
///   that the policy did not sample cannot be rendered. Sampled turns are copied unchanged.
/// - There is no thinking, and nothing is rewritten, except a turn that did not end with `<|eot_id|>`: the template
///   does not write `<|eom_id|>` or `<|end_of_text|>` there, so the conversation forks.
#[derive(Clone, Debug)]
pub struct Llama3 {
    tokenizer: Arc<Tokenizer>,
    settings: Llama3Settings,
    fingerprint: String,
    close: TokenId,
    stop: Vec<TokenId>,
}

impl Llama3 {
    /// Creates the renderer with this tokenizer.
    ///
    /// # Errors
    /// When `<|begin_of_text|>`, a header token, `<|eot_id|>` or a token of `settings.stop` is not a control token of
    /// the tokenizer.
    pub fn new(tokenizer: Arc<Tokenizer>, mut settings: Llama3Settings) -> Result<Self, ChatError> {
        let control = |marker: &str| tokenizer.control(marker);
        control("<|begin_of_text|>")?;
        control("<|start_header_id|>")?;
        control("<|end_header_id|>")?;
        let close = control(CLOSE)?;
        let others = OTHER_STOPS.into_iter().filter_map(|marker| control(marker).ok());
        let usual = std::iter::once(close).chain(others).collect();
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

    /// Returns the format as a Jinja template: `transformers` then makes the same prompts as this renderer. The
    /// template does not handle text that contains names of control tokens, nor long observations.
    #[must_use]
    pub fn template(&self) -> String {
        let text = |text: &str| serde_json::to_string(text).expect("a text can be written");
        format!(
            "{{%- set date = {} -%}}\n{{%- set tools_in_user = {} -%}}\n{{%- set call_form = {} -%}}\n\
             {{%- set tools_for_user = {} -%}}\n{{%- set tools_for_system = {} -%}}\n{}",
            text(&self.settings.date),
            self.settings.tools_in_user_message,
            text(CALL_FORM),
            text(TOOLS_FOR_USER),
            text(TOOLS_FOR_SYSTEM),
            include_str!("llama3.jinja").trim_end(),
        )
    }

    fn writer<'a>(&'a self, canvas: Canvas<'a>, n_messages: usize) -> Writer<'a> {
        Writer { chat: self, canvas, n_messages, n_task: 0 }
    }
}

impl Renderer for Llama3 {
    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn render(
        &self,
        conversation: &[Said<'_>],
        tools: &[ToolSpec],
    ) -> Result<Rendered, RenderError> {
        let canvas = Canvas::new(&self.tokenizer, conversation.len() + 1);
        let mut writer = self.writer(canvas, conversation.len());
        writer.n_task = n_task(conversation);
        let n_written = writer.head(conversation, tools)?;
        writer.messages(conversation, n_written)?;
        Ok(writer.finish(Vec::new()))
    }

    fn bridge(
        &self,
        ended: EndedTurn<'_>,
        _history: &[Said<'_>],
        new: &[Message],
    ) -> Result<Bridged, RenderError> {
        let end = ended.ids.iter().position(|id| self.stop.contains(id));
        let is_clean =
            end.is_none_or(|at| ended.ids[at] == self.close && at + 1 == ended.ids.len());
        if !is_clean {
            return Ok(Bridged::Rewrite);
        }
        let close = if end.is_some() { Vec::new() } else { vec![self.close] };
        let new: Vec<Said<'_>> = new.iter().map(Said::new).collect();
        let canvas = Canvas::after(&self.tokenizer, CLOSE, new.len() + 1);
        let mut writer = self.writer(canvas, new.len());
        writer.messages(&new, 0)?;
        Ok(Bridged::Append(writer.finish(close)))
    }

    fn write(&self, action: &Action) -> Vec<TokenId> {
        let mut canvas = Canvas::new(&self.tokenizer, 1);
        llama_turn(&mut canvas, action);
        canvas.template(CLOSE);
        ids_of(&canvas.finish().concat())
    }

    fn write_after(&self, prefill: &[TokenId], action: &Action) -> Vec<TokenId> {
        after_prefill(&self.tokenizer, prefill, action, |action| self.write(action))
    }

    fn parse(&self, turn: &[TokenId], tools: &[ToolSpec]) -> Action {
        let turn = before_stop(turn, &self.stop);
        check_calls(parse_llama_turn(&self.tokenizer.decode(turn)), tools)
    }

    fn shortens(&self, message: &Message, _tools: &[ToolSpec]) -> bool {
        let limit = self.settings.max_observation_tokens;
        let is_longer = |text: &str| is_heard_in_part(&self.tokenizer, text, limit);
        match message.tool_calls.as_slice() {
            [call] if message.role == Role::Assistant => is_longer(&call_json(call)),
            _ => is_longer(&message.content),
        }
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
    chat: &'a Llama3,
    canvas: Canvas<'a>,
    n_messages: usize,
    /// The number of messages before the first turn, which are the task.
    n_task: usize,
}

impl Writer<'_> {
    /// Writes the system block, and the first user message if it describes the tools. Returns the number of messages
    /// written.
    fn head(
        &mut self,
        conversation: &[Said<'_>],
        tools: &[ToolSpec],
    ) -> Result<usize, RenderError> {
        let settings = &self.chat.settings;
        let system = conversation.first().filter(|said| said.message.role == Role::System);
        self.canvas.template("<|begin_of_text|>");
        self.header("system");
        self.canvas.template(if tools.is_empty() { "" } else { "Environment: ipython\n" });
        self.canvas.template("Cutting Knowledge Date: December 2023\nToday Date: ");
        self.canvas.content(&settings.date);
        self.canvas.template("\n\n");
        if !tools.is_empty() && !settings.tools_in_user_message {
            self.tools(TOOLS_FOR_SYSTEM, tools);
        }
        if let Some(system) = system {
            self.say(0, &system.message.content);
        }
        self.canvas.template(CLOSE);
        let n_system = usize::from(system.is_some());
        if tools.is_empty() || !settings.tools_in_user_message {
            return Ok(n_system);
        }
        let Some(first) = conversation.get(n_system) else {
            let message = "the tools belong in the first user message, and the conversation has no user message";
            return Err(RenderError(message.to_owned()));
        };
        self.canvas.set_owner(n_system);
        self.header("user");
        self.tools(TOOLS_FOR_USER, tools);
        self.say(n_system, &first.message.content);
        self.canvas.template(CLOSE);
        Ok(n_system + 1)
    }

    fn tools(&mut self, lead: &str, tools: &[ToolSpec]) {
        self.canvas.template(lead);
        self.canvas.template(CALL_FORM);
        for tool in tools {
            self.canvas.content(&function_json(tool));
            self.canvas.template("\n\n");
        }
    }

    fn messages(&mut self, messages: &[Said<'_>], n_written: usize) -> Result<(), RenderError> {
        for (index, said) in messages.iter().enumerate().skip(n_written) {
            self.canvas.set_owner(index);
            match (said.message.role, said.drawn) {
                (Role::System, _) => self.block("system", index, said.message),
                (Role::User, _) => self.block("user", index, said.message),
                (Role::Tool, _) => self.tool(index, said.message),
                (Role::Assistant, Some(drawn)) => self.turn(drawn),
                (Role::Assistant, None) => self.assistant(index, said.message)?,
            }
        }
        self.canvas.set_owner(self.n_messages);
        Ok(())
    }

    fn block(&mut self, role: &str, index: usize, message: &Message) {
        self.header(role);
        self.say(index, &message.content);
        self.canvas.template(CLOSE);
    }

    fn tool(&mut self, index: usize, message: &Message) {
        self.header("ipython");
        let text = self.heard(index, &message.content);
        self.canvas.content(&to_python_json(&text));
        self.canvas.template(CLOSE);
    }

    fn turn(&mut self, drawn: &[TokenId]) {
        let chat = self.chat;
        let turn = before_stop(drawn, &chat.stop);
        self.header("assistant");
        self.canvas.verbatim(turn);
        self.canvas.template(CLOSE);
    }

    fn assistant(&mut self, index: usize, message: &Message) -> Result<(), RenderError> {
        match message.tool_calls.as_slice() {
            [] => {
                self.header("assistant");
                let text = self.heard(index, &message.content);
                self.canvas.content(&text);
                self.canvas.template(CLOSE);
            }
            [call] => {
                self.header("assistant");
                let call = self.heard(index, &call_json(call));
                self.canvas.content(&call);
                self.canvas.template(CLOSE);
            }
            calls => {
                let message = format!(
                    "Llama 3 makes one call at a time, but a message has {} calls",
                    calls.len()
                );
                return Err(RenderError(message));
            }
        }
        Ok(())
    }

    fn header(&mut self, role: &str) {
        self.canvas.template("<|start_header_id|>");
        self.canvas.template(role);
        self.canvas.template("<|end_header_id|>\n\n");
    }

    fn say(&mut self, index: usize, text: &str) {
        let text = self.heard(index, text);
        self.canvas.content(text.trim());
    }

    /// Returns the part of a message's text that the model sees.
    fn heard(&self, index: usize, text: &str) -> String {
        let is_task = index < self.n_task;
        let limit = if is_task { usize::MAX } else { self.chat.settings.max_observation_tokens };
        heard(&self.chat.tokenizer, text, limit)
    }

    fn finish(mut self, close: Vec<TokenId>) -> Rendered {
        self.header("assistant");
        let mut messages = self.canvas.finish();
        let generation = ids_of(&messages.pop().unwrap_or_default());
        Rendered { close, messages, generation, prefill: Vec::new() }
    }
}

/// Writes an action, up to its close. Text follows the calls, because calls after text would be parsed as text.
pub(crate) fn llama_turn(canvas: &mut Canvas<'_>, action: &Action) {
    let calls = action.calls.iter().map(|attempt| match attempt {
        CallAttempt::Call(call) => call_json(call),
        CallAttempt::Malformed(call) => call.raw.clone(),
    });
    let calls: Vec<String> = calls.collect();
    let separator = if calls.is_empty() || action.text.is_empty() { "" } else { "\n" };
    canvas.content(&format!("{}{separator}{}", calls.join("; "), action.text));
}

fn call_json(call: &ToolCall) -> String {
    let name = to_python_json(&Value::from(call.name.as_str()));
    format!("{{\"name\": {name}, \"parameters\": {}}}", to_python_json(&call.arguments))
}

#[derive(Serialize)]
struct Function<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    function: &'a ToolSpec,
}

fn function_json(tool: &ToolSpec) -> String {
    to_indented_json(&Function { kind: "function", function: tool }, 4)
}
