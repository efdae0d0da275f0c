mod given;
mod layout;
mod moment;
mod own_turn;
mod program;
mod reuse;

pub use moment::{with_moment, without_moment};

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use turnwise_environment::{Action, CallAttempt, Message, Role, ToolCall, ToolSpec};
use turnwise_rollout::{Bridged, EndedTurn, RenderError, Rendered, Renderer, Said};
use turnwise_trajectory::TokenId;

use crate::canvas::Canvas;
use crate::chatml::{hermes_turn, ids_of, n_task};
use crate::demonstrated::after_prefill;
use crate::fingerprint::fingerprint;
use crate::llama::llama_turn;
use crate::llama_calls::{parse_bare_turn, parse_bare_with_ids};
use crate::thinking::Tags;
use crate::tool_calls::{check_calls, parse_with_ids};
use crate::truncate::{heard, is_heard_in_part, is_longer, middle_truncate};
use crate::turn::before_stop;
use crate::{ChatError, Thinking, Tokenizer, marks, parse_turn, thinking};
use given::ThoughtField;
use layout::{Layout, MessageSpan};
use program::{Program, TemplateInput};
use reuse::{Kept, kept};

/// Part of every fingerprint. It is incremented when the same settings give other tokens.
const FORMAT: &str = "template 6";

/// The question of the dummy conversation, which shows how a template ends a turn and writes calls.
const QUESTION: &str = "question";
const ANSWER: &str = "answer";
/// The longest id of a call that is shown again.
const MAX_ID_BYTES: usize = 64;

/// Which templates are trusted. A template is a program: rendering is bounded in steps, depth and output, but not in
/// the memory of every filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The template with this [`template_hash`].
    Hash(String),
    /// Any template: the caller has read it, or trusts its author.
    Any,
}

/// How a model writes tool calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallForm {
    /// JSON between `<tool_call>` tags, parsed by [`parse_turn`].
    #[default]
    Hermes,
    /// Bare JSON as [`parse_llama_turn`](crate::parse_llama_turn) parses it, a list of such calls, or a list of calls in
    /// Python; a turn that does not begin with these is parsed by [`parse_turn`].
    Llama3,
}

/// Settings of [`TemplateRenderer`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TemplateSettings {
    /// Control tokens that end a turn, in addition to the one that the template writes after a turn, which is detected.
    pub stop: Vec<String>,
    /// How the model writes tool calls.
    pub calls: CallForm,
    /// Other variables of the template, such as `bos_token`, `enable_thinking` and `date_string`.
    pub arguments: Map<String, Value>,
    /// The results of `strftime_now` by format.
    pub times: BTreeMap<String, String>,
    /// The moment of `strftime_now` for every other format, such as `2026-01-31` or `2026-01-31T14:30:00`. Without it,
    /// a template that asks for the time cannot be rendered.
    pub time: Option<String>,
    /// The treatment of thinking in past turns.
    pub thinking: Thinking,
    /// The most tokens of one message's text after the first turn. The middle of a longer text is replaced by `[... N
    /// bytes omitted ...]`. Messages before the first turn are the task, and are not truncated.
    pub max_observation_tokens: usize,
    /// The longest context, in tokens; the template may write four bytes for each.
    pub max_context_tokens: usize,
}

impl Default for TemplateSettings {
    fn default() -> Self {
        Self {
            stop: vec!["<|im_end|>".to_owned()],
            calls: CallForm::default(),
            arguments: Map::new(),
            times: BTreeMap::new(),
            time: None,
            thinking: Thinking::default(),
            max_observation_tokens: 8192,
            max_context_tokens: 131_072,
        }
    }
}

/// Returns the SHA-256 of a template's text, as 64 hexadecimal digits.
#[must_use]
pub fn template_hash(template: &str) -> String {
    let hex = |nibble: u8| char::from_digit(u32::from(nibble), 16).expect("a nibble is a digit");
    let digest = Sha256::digest(template.as_bytes());
    digest.iter().flat_map(|byte| [hex(byte >> 4), hex(byte & 15)]).collect()
}

/// A model's own chat template, in Jinja as `transformers` runs it.
///
/// - The text equals the template's output for the unchanged messages. The template's own text may become control
///   tokens; content, tools included, never does, whatever it spells; the thinking tags in an assistant's message are
///   the template's own. If no content contains the name of a control token, the tokens are those of the template's
///   output.
/// - A turn ends with the control token that the template writes after it, and with those of the settings.
/// - Sampled turns are kept in history as follows. With [`Thinking::Keep`] all tokens stay, and new text is appended.
///   With [`Thinking::Follow`] they stay where the template keeps their text, apart from blanks; where the template
///   drops the thinking, or another prefix, the tokens after it stay; and where the template writes other text (Llama 3
///   drops text before a call), that text replaces them. New text is appended if everything before it stays; otherwise
///   the whole conversation is rendered again.
/// - The template gets a tool's name with its answer, the ids of calls that a turn writes, and ids of nine letters and
///   digits if it rejects others.
///   It gets a sampled turn with several calls as text if it rejects the calls.
/// - A message without text has its tokens in the list of the next message with text.
/// - Messages after the first turn are truncated in the middle to the limit of the settings. Tools print for terminals:
///   a tool's message is [cleaned](crate::clean) of terminal escapes and control characters. Other messages keep theirs,
///   as `transformers` does.
///
/// Rendering fails when the template does: its own exceptions, its bounds, an unknown time.
pub struct TemplateRenderer {
    tokenizer: Arc<Tokenizer>,
    settings: TemplateSettings,
    program: Program,
    fingerprint: String,
    stop: Vec<TokenId>,
    /// The names of the end tokens; the first is the one that the template writes after a turn.
    closes: Vec<String>,
    /// The field of a message that has its thoughts, if the template supports one.
    thoughts: Option<ThoughtField>,
    /// The tags around thoughts that the template names; `None` for `<think>`.
    tags: Option<Tags>,
}

impl TemplateRenderer {
    /// Creates the renderer of a template.
    ///
    /// # Errors
    /// When the template is not trusted, is invalid, or a stop token is not a control token of the tokenizer.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        template: &str,
        trust: &Trust,
        settings: TemplateSettings,
    ) -> Result<Self, ChatError> {
        Self::with_tool_use(tokenizer, template, None, trust, settings)
    }

    /// Creates the renderer of a template and of another one for conversations with tools, which some models have under
    /// the name `tool_use`. Trust in either covers both.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_tool_use(
        tokenizer: Arc<Tokenizer>,
        template: &str,
        tool_use: Option<&str>,
        trust: &Trust,
        settings: TemplateSettings,
    ) -> Result<Self, ChatError> {
        let hash = template_hash(template);
        let tool_hash = tool_use.map(template_hash);
        if let Trust::Hash(trusted) = trust
            && *trusted != hash
            && Some(trusted) != tool_hash.as_ref()
        {
            return Err(ChatError::Untrusted { hash, trusted: trusted.clone() });
        }
        let program = Program::new(template, tool_use, &settings)?;
        let thoughts = ThoughtField::of(template);
        let tags = thinking::tags_in(template);
        let mut closes = settings.stop.clone();
        if let Some(written) = written_close(&program, &tokenizer) {
            closes.retain(|close| *close != written);
            closes.insert(0, written);
        }
        let stop = closes.iter().map(|marker| tokenizer.control(marker));
        let stop: Vec<TokenId> = stop.collect::<Result<_, _>>()?;
        if stop.is_empty() {
            let message = "no control token ends a turn: the template writes none, and neither eos_token of \
                tokenizer_config.json nor eos_token_id of generation_config.json names one";
            return Err(ChatError::Template(message.to_owned()));
        }
        // In a fixed order, wherever they were found.
        let mut ends: Vec<(TokenId, String)> = stop.into_iter().zip(closes).collect();
        ends[1..].sort_unstable();
        let (stop, closes): (Vec<TokenId>, Vec<String>) = ends.into_iter().unzip();
        let settings = TemplateSettings { stop: closes.clone(), ..settings };
        let written = serde_json::to_string(&settings).expect("settings are plain data");
        let tool_hash = tool_hash.unwrap_or_default();
        let identity =
            format!("{}\n{FORMAT}\n{hash}{tool_hash}\n{written}", tokenizer.fingerprint());
        let fingerprint = fingerprint(identity.as_bytes());
        Ok(Self { tokenizer, settings, program, fingerprint, stop, closes, thoughts, tags })
    }

    /// Returns the tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Returns whether calls in the template's own format can be parsed, so that a policy that follows its template
    /// makes calls. Returns `None` if the template writes no calls.
    #[must_use]
    pub fn reads_its_calls(&self, tool: &ToolSpec) -> Option<bool> {
        let call = ToolCall {
            id: "call_0".to_owned(),
            name: tool.name.clone(),
            arguments: json!({"argument": ANSWER}),
        };
        let action = Action { calls: vec![CallAttempt::Call(call.clone())], ..Action::text("") };
        let turns = self.written(&action, std::slice::from_ref(tool));
        let turn = turns.iter().find(|turn| turn.contains(&tool.name))?;
        let read = self.parse(&self.tokenizer.encode_with_markers(turn), &[]);
        let is_same = |read: &ToolCall| read.name == call.name && read.arguments == call.arguments;
        Some(read.tool_calls().next().is_some_and(is_same))
    }

    /// Returns whether the template reads the thoughts of a message under this key, such as `reasoning_content`. Those
    /// of a sampled turn are given under the key that it reads; `transformers` passes a message as it is.
    #[must_use]
    pub fn reads_thoughts(&self, key: &str) -> bool {
        self.program.reads(key)
    }

    /// Renders a whole conversation that no turn follows: the template gets `add_generation_prompt = false`. The text
    /// after the last message is in [`Rendered::generation`], and in [`Rendered::prefill`] from a tag of thinking on.
    ///
    /// # Errors
    /// If the conversation cannot be rendered.
    pub fn render_ended(
        &self,
        conversation: &[Said<'_>],
        tools: &[ToolSpec],
    ) -> Result<Rendered, RenderError> {
        let layout = self.layout(conversation, tools, false)?;
        Ok(self.rendered(&layout, conversation, None, Vec::new()))
    }

    /// Renders a conversation.
    fn layout(
        &self,
        said: &[Said<'_>],
        tools: &[ToolSpec],
        leads_in: bool,
    ) -> Result<Layout, RenderError> {
        if said.len() > marks::MAX_OWNERS {
            let most = marks::MAX_OWNERS;
            return Err(RenderError(format!("it has more than {most} messages")));
        }
        let n_task = n_task(said);
        let mut heard: Vec<Message> =
            said.iter().enumerate().map(|(at, said)| self.heard(said, at < n_task)).collect();
        self.use_written_ids(said, &mut heard);
        let layout = |heard: &[Message]| {
            let messages: Vec<&Message> = heard.iter().collect();
            let script = TemplateInput { messages: &messages, tools, leads_in };
            self.program.layout(&self.tokenizer, script, &self.closes)
        };
        layout(&heard).or_else(|error| {
            let as_sampled: Vec<Message> =
                said.iter().zip(heard).map(|(said, heard)| self.as_sampled(said, heard)).collect();
            layout(&as_sampled).map_err(|_| error)
        })
    }

    /// Replaces the numbers of sampled calls, and those of their answers, by the ids that the turns write.
    fn use_written_ids(&self, said: &[Said<'_>], heard: &mut [Message]) {
        let mut written: Vec<Option<String>> = Vec::new();
        let of_number = |id: &str, written: &[Option<String>]| {
            let number: usize = id.strip_prefix("call_")?.parse().ok()?;
            let id = written.get(number)?.clone()?;
            let n_same = written.iter().flatten().filter(|other| **other == id).count();
            (n_same == 1 && !id.is_empty() && id.len() <= MAX_ID_BYTES).then_some(id)
        };
        for (said, message) in said.iter().zip(heard) {
            if message.role == Role::Assistant {
                let drawn = said.drawn.filter(|_| !message.tool_calls.is_empty());
                written = drawn.map_or_else(Vec::new, |drawn| self.written_ids(drawn));
            }
            for call in &mut message.tool_calls {
                call.id = of_number(&call.id, &written).unwrap_or_else(|| call.id.clone());
            }
            if let Some(id) = &mut message.tool_call_id {
                *id = of_number(id, &written).unwrap_or_else(|| id.clone());
            }
        }
    }

    /// Returns the id that a turn writes for each of its calls.
    fn written_ids(&self, turn: &[TokenId]) -> Vec<Option<String>> {
        let text = self.tokenizer.decode(before_stop(turn, &self.stop));
        match self.settings.calls {
            CallForm::Hermes => parse_with_ids(&text).1,
            CallForm::Llama3 => parse_bare_with_ids(&text).1,
        }
    }

    /// Returns a turn with several calls as text. A template may reject such a turn (Llama 3.1 does), and the policy has
    /// sampled it.
    fn as_sampled(&self, said: &Said<'_>, heard: Message) -> Message {
        match said.drawn.filter(|_| heard.tool_calls.len() > 1) {
            Some(drawn) => {
                let text = self.tokenizer.decode(before_stop(drawn, &self.stop));
                Message { content: text, tool_calls: Vec::new(), reasoning: None, ..heard }
            }
            None => heard,
        }
    }

    /// Returns the part of a message that the model sees.
    fn heard(&self, said: &Said<'_>, is_task: bool) -> Message {
        let message = said.message;
        if said.drawn.is_some() {
            return self.as_text(message);
        }
        let limit = if is_task { usize::MAX } else { self.settings.max_observation_tokens };
        let heard = |text: &str| match message.role {
            // Tools print for terminals.
            Role::Tool => heard(&self.tokenizer, text, limit),
            _ if is_task => text.to_owned(),
            _ => middle_truncate(&self.tokenizer, text, limit).into_owned(),
        };
        Message {
            content: heard(&message.content),
            reasoning: message.reasoning.as_deref().map(heard),
            ..message.clone()
        }
    }

    /// Returns a turn in the form that the template gets: if the template does not support separate thinking, it is
    /// part of the text, as it was sampled.
    fn as_text(&self, message: &Message) -> Message {
        let thoughts = message.reasoning.as_deref().filter(|_| self.thoughts.is_none());
        let Some(thoughts) = thoughts else { return message.clone() };
        let [before, after] = self.tags.unwrap_or(thinking::USUAL).around();
        let content = format!("{before}{thoughts}{after}{}", message.content);
        Message { content, reasoning: None, ..message.clone() }
    }

    /// Returns the spans of each message from the index on, of the lead-in, and of the text that is forced at the start
    /// of the turn.
    fn rendered(
        &self,
        layout: &Layout,
        said: &[Said<'_>],
        from: Option<(usize, usize)>,
        close: Vec<TokenId>,
    ) -> Rendered {
        let n_owners = said.len() + 2;
        let (first, from) = from.unwrap_or((0, 0));
        let before = self.closes.iter().find(|close| layout.output.text[..from].ends_with(*close));
        let canvas = match before {
            Some(control) => Canvas::after(&self.tokenizer, control, n_owners),
            None => Canvas::new(&self.tokenizer, n_owners),
        };
        let mut writer = Writer { renderer: self, output: &layout.output, canvas };
        for (owner, part) in layout.messages.iter().enumerate().skip(first) {
            writer.message(owner, part, &said[owner], from);
        }
        let text = &layout.output.text;
        let lead_in = layout.end().max(from);
        let thinks = thinking::first_open(&text[lead_in..]).map_or(text.len(), |at| lead_in + at);
        writer.text(said.len(), lead_in..thinks);
        writer.text(said.len() + 1, thinks..text.len());
        let mut messages = writer.canvas.finish();
        let prefill = ids_of(&messages.pop().unwrap_or_default());
        let generation = ids_of(&messages.pop().unwrap_or_default());
        messages.drain(..first);
        Rendered { close, messages, generation, prefill }
    }

    /// Returns what history contains for a sampled turn.
    fn kept(&self, layout: &Layout, owner: usize, said: &Said<'_>) -> Option<Kept> {
        let turn = before_stop(said.drawn?, &self.stop);
        let part = layout.messages[owner].turn.clone()?;
        let written = layout.output.text.get(part).unwrap_or_default();
        Some(kept(&self.tokenizer, self.settings.thinking, turn, said.message, written))
    }

    /// Returns whether everything up to the end of the last turn equals the existing tokens.
    fn is_held(
        &self,
        layout: &Layout,
        history: &[Said<'_>],
        tools: &[ToolSpec],
    ) -> Result<bool, RenderError> {
        let Some((last, before)) = history.split_last() else { return Ok(false) };
        let held = self.layout(before, tools, true)?;
        let owner = before.len();
        let MessageSpan { start, turn, .. } = &layout.messages[owner];
        let Some(turn) = turn else { return Ok(false) };
        let prefill = thinking::first_open(&held.output.text[held.end()..]);
        let lead_in = prefill.map_or(held.output.text.len(), |at| held.end() + at);
        let same_end = held.end() == *start || before.is_empty();
        Ok(same_end
            && held.output.text[..lead_in] == layout.output.text[..turn.start]
            && self.kept(layout, owner, last) == Some(Kept::Whole)
            && before.iter().enumerate().all(|(owner, said)| {
                self.kept(&held, owner, said) == self.kept(layout, owner, said)
            }))
    }
}

/// Writes messages as the template does, and sampled turns unchanged.
struct Writer<'a> {
    renderer: &'a TemplateRenderer,
    output: &'a marks::Output,
    canvas: Canvas<'a>,
}

impl Writer<'_> {
    fn message(&mut self, owner: usize, part: &MessageSpan, said: &Said<'_>, from: usize) {
        let start = part.start.max(from);
        let (Some(turn), Some(drawn)) = (&part.turn, said.drawn) else {
            return self.text(owner, start..part.end.max(start));
        };
        let renderer = self.renderer;
        self.text(owner, start..turn.start);
        let ids = before_stop(drawn, &renderer.stop);
        let written = &self.output.text[turn.clone()];
        match kept(&renderer.tokenizer, renderer.settings.thinking, ids, said.message, written) {
            Kept::Whole => self.canvas.verbatim(ids),
            Kept::Rest { head, tail, from } => {
                self.text(owner, turn.start..turn.start + head);
                thinking::keep_from(&renderer.tokenizer, ids, from, &mut self.canvas);
                self.text(owner, turn.end - tail..turn.end);
            }
            Kept::Nothing => self.text(owner, turn.clone()),
        }
        self.text(owner, turn.end..part.end);
        if turn.end == part.end
            && drawn.len() > ids.len()
            && renderer.settings.thinking == Thinking::Keep
        {
            // The template writes no close, and the policy sampled one.
            self.canvas.verbatim(&drawn[ids.len()..=ids.len()]);
        }
    }

    /// Writes a range of the output.
    fn text(&mut self, owner: usize, range: std::ops::Range<usize>) {
        self.canvas.set_owner(owner);
        let mut at = range.start;
        let is_inside = |place: &&usize| range.start < **place && **place < range.end;
        let output = self.output;
        let edges = output.said.iter().flat_map(|(said, _)| [&said.start, &said.end]);
        let mut edges: Vec<usize> =
            edges.chain(&output.joints).filter(is_inside).copied().collect();
        edges.push(range.end);
        edges.sort_unstable();
        edges.dedup();
        for edge in edges {
            let is_said = output.said.iter().any(|(said, _)| said.start <= at && edge <= said.end);
            let part = &output.text[at..edge];
            if is_said {
                self.canvas.content(part);
            } else {
                self.canvas.template(part);
            }
            at = edge;
        }
    }
}

impl Renderer for TemplateRenderer {
    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn render(
        &self,
        conversation: &[Said<'_>],
        tools: &[ToolSpec],
    ) -> Result<Rendered, RenderError> {
        let layout = self.layout(conversation, tools, true)?;
        Ok(self.rendered(&layout, conversation, None, Vec::new()))
    }

    fn bridge(
        &self,
        ended: EndedTurn<'_>,
        history: &[Said<'_>],
        new: &[Message],
    ) -> Result<Bridged, RenderError> {
        self.go_on(ended, history, new, &[])
    }

    fn go_on(
        &self,
        ended: EndedTurn<'_>,
        history: &[Said<'_>],
        new: &[Message],
        tools: &[ToolSpec],
    ) -> Result<Bridged, RenderError> {
        let end = ended.ids.iter().position(|id| self.stop.contains(id));
        let has_tail = end.is_some_and(|at| at + 1 < ended.ids.len());
        if has_tail || history.is_empty() || new.is_empty() {
            return Ok(Bridged::Rewrite);
        }
        let said: Vec<Said<'_>> =
            history.iter().copied().chain(new.iter().map(Said::new)).collect();
        let layout = self.layout(&said, tools, true)?;
        let last = layout.messages[history.len() - 1].clone();
        let Some(turn) = last.turn else { return Ok(Bridged::Rewrite) };
        let written = &layout.output.text[turn.end..last.end];
        let close = self.tokenizer.token_id(written).filter(|_| !written.is_empty());
        let drawn = end.map(|at| ended.ids[at]);
        let is_other = drawn.is_some() && drawn != close;
        let follows = self.settings.thinking == Thinking::Follow;
        if follows && (is_other || !self.is_held(&layout, history, tools)?) {
            return Ok(Bridged::Rewrite);
        }
        let close = close.or(Some(self.stop[0]).filter(|_| !written.is_empty()));
        let close = close.filter(|close| drawn != Some(*close));
        let from = Some((history.len(), last.end));
        Ok(Bridged::Append(self.rendered(&layout, &said, from, close.into_iter().collect())))
    }

    fn write(&self, action: &Action) -> Vec<TokenId> {
        if let Some(ids) = self.write_own(action).or_else(|| self.write_thoughts(action)) {
            return ids;
        }
        let mut canvas = Canvas::new(&self.tokenizer, 1);
        match self.settings.calls {
            CallForm::Hermes => hermes_turn(&mut canvas, action),
            CallForm::Llama3 => llama_turn(&mut canvas, action),
        }
        canvas.template(&self.closes[0]);
        ids_of(&canvas.finish().concat())
    }

    fn write_after(&self, prefill: &[TokenId], action: &Action) -> Vec<TokenId> {
        after_prefill(&self.tokenizer, prefill, action, |action| self.write(action))
    }

    fn parse(&self, turn: &[TokenId], tools: &[ToolSpec]) -> Action {
        let text = self.tokenizer.decode(before_stop(turn, &self.stop));
        let action = match self.settings.calls {
            CallForm::Hermes => parse_turn(&text),
            CallForm::Llama3 => parse_bare_turn(&text),
        };
        check_calls(action, tools)
    }

    fn shortens(&self, message: &Message, _tools: &[ToolSpec]) -> bool {
        let limit = self.settings.max_observation_tokens;
        let is_longer = |text: &str| match message.role {
            Role::Tool => is_heard_in_part(&self.tokenizer, text, limit),
            _ => is_longer(&self.tokenizer, text, limit),
        };
        is_longer(&message.content) || message.reasoning.as_deref().is_some_and(is_longer)
    }

    fn stop_tokens(&self) -> &[TokenId] {
        &self.stop
    }

    fn text(&self, ids: &[TokenId]) -> String {
        self.tokenizer.decode(ids)
    }
}

/// Returns the control token that the template writes after a turn: the first one after an answer.
fn written_close(program: &Program, tokenizer: &Tokenizer) -> Option<String> {
    let messages = [Message::user(QUESTION), Message::assistant(ANSWER)];
    let messages: Vec<&Message> = messages.iter().collect();
    let script = TemplateInput { messages: &messages, tools: &[], leads_in: false };
    let (_, text) = program.plain(script).ok()?;
    let behind = &text[text.rfind(ANSWER)? + ANSWER.len()..];
    let mut places = behind.char_indices();
    let close = places.find_map(|(at, _)| tokenizer.added().control_at(behind, at))?;
    (!close.text.starts_with("</tool") && close.text != thinking::OPEN)
        .then(|| close.text.to_owned())
}

/// Writes the keys in the order that other users of the template have.
fn function(tool: &ToolSpec) -> Value {
    let ToolSpec { name, description, parameters } = tool;
    json!({
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    })
}

impl fmt::Debug for TemplateRenderer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TemplateRenderer")
            .field("fingerprint", &self.fingerprint)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
