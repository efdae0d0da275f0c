use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::Environment;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use turnwise_environment::{Action, Message, Role, ToolSpec};
use turnwise_rollout::{Bridged, EndedTurn, RenderError, Rendered, Renderer, Said};
use turnwise_trajectory::{Span, TokenId};

use crate::canvas::Canvas;
use crate::chatml::{hermes_turn, ids_of};
use crate::fingerprint::fingerprint;
use crate::llama::llama_turn;
use crate::marks::{Drawn, Marks, after_first};
use crate::tool_calls::check_calls;
use crate::truncate::heard;
use crate::turn::before_stop;
use crate::{ChatError, Thinking, Tokenizer, jinja, parse_llama_turn, parse_turn, thinking};

/// Part of every fingerprint. Counts up when the same settings come to mean other tokens.
const FORMAT: &str = "template 1";

/// Output of more bytes than this for each token of the context cannot fit into it.
const BYTES_PER_TOKEN: usize = 4;

/// The dummy conversation of proofs.
const QUESTION: &str = "question";
const ANSWER: &str = "answer";
const THOUGHT: &str = "thought";

/// Whose template it may be. A template is a program: rendering is bounded in steps, depth and output, but not in the memory
/// of every filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The one with this [`template_hash`].
    Hash(String),
    /// Anybody's: the caller has looked at it, or its author is trusted.
    Any,
}

/// How a model writes tool calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallForm {
    /// JSON between `<tool_call>` tags: [`parse_turn`].
    #[default]
    Hermes,
    /// Bare JSON: [`parse_llama_turn`].
    Llama3,
}

/// The choices of [`TemplateRenderer`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TemplateSettings {
    /// The control tokens that end a turn; the first is the one the template writes.
    pub stop: Vec<String>,
    /// How the model writes tool calls.
    pub calls: CallForm,
    /// What else the template is given, such as `bos_token`, `enable_thinking` and `date_string`.
    pub arguments: Map<String, Value>,
    /// What `strftime_now` answers for a format. A time that is not here cannot be rendered.
    pub times: BTreeMap<String, String>,
    /// What becomes of thinking in past turns.
    pub thinking: Thinking,
    /// The most tokens of one message's text. A longer one loses its middle, with `[... N bytes omitted ...]` in its place.
    pub max_observation_tokens: usize,
    /// The longest context; the template may write four bytes for each of its tokens.
    pub max_context_tokens: usize,
}

impl Default for TemplateSettings {
    fn default() -> Self {
        Self {
            stop: vec!["<|im_end|>".to_owned()],
            calls: CallForm::default(),
            arguments: Map::new(),
            times: BTreeMap::new(),
            thinking: Thinking::default(),
            max_observation_tokens: 8192,
            max_context_tokens: 131_072,
        }
    }
}

/// The SHA-256 of a template's text, 64 hexadecimal digits.
#[must_use]
pub fn template_hash(template: &str) -> String {
    let hex = |nibble: u8| char::from_digit(u32::from(nibble), 16).expect("a nibble is a digit");
    let digest = Sha256::digest(template.as_bytes());
    digest.iter().flat_map(|byte| [hex(byte >> 4), hex(byte & 15)]).collect()
}

/// A model's own chat template, in Jinja as `transformers` runs it.
///
/// - What the template writes of its own may be control tokens; what somebody said, tools included, is none, whatever it
///   spells. For text that spells none the tokens are those of the template's output. A template that reads texts for tags
///   of tools' answers does not find them.
/// - The tokens after a turn are found by proof: two renderings of a dummy conversation, before and after the new messages,
///   show whether the template only appends; where it does not, the conversation is rendered anew. What was proved is kept
///   for each kind of continuation. A continuation is answers of tools, then at most one user message; others are rendered
///   anew.
/// - What the policy drew is put into the output as it was drawn, calls included.
/// - A message without text has its tokens in the list of the next message with text.
///
/// Rendering fails where the template does: its own exceptions, its bounds, a time that is not frozen.
pub struct TemplateRenderer {
    tokenizer: Arc<Tokenizer>,
    settings: TemplateSettings,
    environment: Environment<'static>,
    has_thinking: bool,
    fingerprint: String,
    stop: Vec<TokenId>,
    /// For each kind of continuation, how many bytes of the dummy conversation stand before it; `None` where the template
    /// rewrites.
    proofs: Mutex<HashMap<Shape, Option<usize>>>,
}

/// A kind of continuation.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    has_tools: bool,
    has_user: bool,
    has_thoughts: bool,
}

impl TemplateRenderer {
    /// The renderer of a template.
    ///
    /// # Errors
    /// When the template is not the trusted one, is no template, or a stop token is no control token of the tokenizer.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        template: &str,
        trust: &Trust,
        settings: TemplateSettings,
    ) -> Result<Self, ChatError> {
        let hash = template_hash(template);
        if let Trust::Hash(trusted) = trust
            && *trusted != hash
        {
            return Err(ChatError::Untrusted { hash, trusted: trusted.clone() });
        }
        let environment = jinja::environment(template, settings.times.clone())
            .map_err(|error| ChatError::Template(format!("{error:#}")))?;
        let stop = settings.stop.iter().map(|marker| tokenizer.control(marker));
        let stop: Vec<TokenId> = stop.collect::<Result<_, _>>()?;
        if stop.is_empty() {
            return Err(ChatError::Template("no token ends a turn; name it in `stop`".to_owned()));
        }
        let written = serde_json::to_string(&settings).expect("settings are plain data");
        let identity = format!("{}\n{FORMAT}\n{hash}\n{written}", tokenizer.fingerprint());
        Ok(Self {
            has_thinking: template.contains(thinking::CLOSE),
            fingerprint: fingerprint(identity.as_bytes()),
            proofs: Mutex::default(),
            tokenizer,
            settings,
            environment,
            stop,
        })
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    fn run(
        &self,
        messages: Vec<Value>,
        tools: &[Value],
        leads_in: bool,
    ) -> Result<String, RenderError> {
        let mut context = self.settings.arguments.clone();
        context.insert("messages".to_owned(), Value::Array(messages));
        let tools = if tools.is_empty() { Value::Null } else { Value::Array(tools.to_vec()) };
        context.insert("tools".to_owned(), tools);
        context.insert("add_generation_prompt".to_owned(), Value::Bool(leads_in));
        let limit = self.settings.max_context_tokens.saturating_mul(BYTES_PER_TOKEN);
        jinja::render(&self.environment, &Value::Object(context), limit)
    }

    /// A message as the template gets it.
    fn given<'a>(
        &self,
        marks: &mut Marks<'a>,
        owner: usize,
        said: Said<'a>,
    ) -> Result<Value, RenderError> {
        let message = said.message;
        let mut given = Map::new();
        given.insert("role".to_owned(), json!(message.role));
        if let Some(drawn) = said.drawn {
            let drawn = before_stop(drawn, &self.stop);
            let follows = self.settings.thinking == Thinking::Follow;
            let thoughts = message.reasoning.as_deref().filter(|_| follows && self.has_thinking);
            if let Some(thoughts) = thoughts {
                given.insert("reasoning_content".to_owned(), marks.text(owner, thoughts)?.into());
            }
            let drawn = if follows { Drawn::Stripped(drawn) } else { Drawn::Whole(drawn) };
            given.insert("content".to_owned(), marks.drawn(owner, drawn)?.into());
            return Ok(Value::Object(given));
        }
        let (thoughts, content) = self.texts(message);
        if let Some(thoughts) = thoughts {
            given.insert(
                "reasoning_content".to_owned(),
                marks.text(owner, &self.heard(thoughts))?.into(),
            );
        }
        given.insert("content".to_owned(), marks.text(owner, &self.heard(content))?.into());
        if !message.tool_calls.is_empty() {
            let calls = message.tool_calls.iter().map(|call| {
                let function = json!({"name": call.name, "arguments": call.arguments});
                json!({"id": call.id, "type": "function", "function": function})
            });
            let calls: Vec<Value> = calls.map(|call| marks.value(&call)).collect();
            given.insert("tool_calls".to_owned(), Value::Array(calls));
        }
        if let Some(id) = &message.tool_call_id {
            given.insert("tool_call_id".to_owned(), marks.guarded(id).into());
        }
        Ok(Value::Object(given))
    }

    /// Thoughts and text of a message that was not drawn. A template that knows thinking finds it in the text, which the
    /// marks would hide from it.
    fn texts<'a>(&self, message: &'a Message) -> (Option<&'a str>, &'a str) {
        let is_inside =
            message.role == Role::Assistant && message.content.contains(thinking::CLOSE);
        if message.reasoning.is_none() && self.has_thinking && is_inside {
            let (thoughts, rest) = thinking::split(message);
            return (Some(thoughts.unwrap_or_default()), rest);
        }
        (message.reasoning.as_deref(), &message.content)
    }

    fn heard(&self, text: &str) -> String {
        let limit = self.settings.max_observation_tokens;
        heard(&self.tokenizer, text, limit)
    }

    /// The lists of each message, and the lead-in with what is put into the model's mouth.
    fn rendered(&self, mut messages: Vec<Vec<Span>>, close: Vec<TokenId>) -> Rendered {
        let mut generation = ids_of(&messages.pop().unwrap_or_default());
        let thinks = self.tokenizer.token_id("<think>").filter(|id| self.tokenizer.is_control(*id));
        let at = generation.iter().position(|id| Some(*id) == thinks).unwrap_or(generation.len());
        let prefill = generation.split_off(at);
        Rendered { close, messages, generation, prefill }
    }

    fn shape(&self, history: &[Said<'_>], new: &[Message]) -> Option<Shape> {
        let has_user = new.last().is_some_and(|message| message.role == Role::User);
        let tools = &new[..new.len() - usize::from(has_user)];
        if new.is_empty() || tools.iter().any(|message| message.role != Role::Tool) {
            return None;
        }
        let since = thinking::last_query(history.iter().map(|said| said.message)).unwrap_or(0);
        let thinks = |said: &Said<'_>| {
            let text = said.drawn.map(|ids| self.tokenizer.decode(ids));
            text.is_some_and(|text| text.contains(thinking::CLOSE))
        };
        let has_thoughts = history[since..].iter().any(thinks);
        Some(Shape { has_tools: !tools.is_empty(), has_user, has_thoughts })
    }

    /// The output after the dummy's turn; `None` where the template does not append.
    fn continuation(&self, shape: Shape, new: &[Value]) -> Result<Option<String>, RenderError> {
        let keeps = self.settings.thinking == Thinking::Keep;
        let question = json!({"role": "user", "content": QUESTION});
        let mut marks = Marks::new(&self.tokenizer);
        let answer = if keeps { marks.text(0, ANSWER)? } else { ANSWER.to_owned() };
        let mut turn = json!({"role": "assistant", "content": answer});
        if shape.has_thoughts && !keeps {
            turn["reasoning_content"] = json!(THOUGHT);
        }
        let mut messages = vec![question.clone(), turn];
        messages.extend_from_slice(new);
        let output = self.run(messages, &[], true)?;
        if keeps {
            let start = after_first(&output, &self.settings.stop);
            return Ok(start.map(|start| output[start..].to_owned()));
        }
        let mut proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        let known = proofs.get(&shape).copied();
        let start = if let Some(start) = known {
            start
        } else {
            let held = self.held(question, shape)?;
            let start = output.starts_with(&held).then_some(held.len());
            proofs.insert(shape, start);
            start
        };
        Ok(start.and_then(|start| output.get(start..)).map(str::to_owned))
    }

    /// What an agent holds after the dummy's turn.
    fn held(&self, question: Value, shape: Shape) -> Result<String, RenderError> {
        let mut held = self.run(vec![question], &[], true)?;
        if shape.has_thoughts {
            held.push_str("<think>\n");
            held.push_str(THOUGHT);
            held.push_str("\n</think>\n\n");
        }
        held.push_str(ANSWER);
        held.push_str(&self.settings.stop[0]);
        Ok(held)
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
        let mut marks = Marks::new(&self.tokenizer);
        let mut given = Vec::with_capacity(conversation.len());
        for (owner, said) in conversation.iter().enumerate() {
            given.push(self.given(&mut marks, owner, *said)?);
        }
        let tools: Vec<Value> = tools.iter().map(|tool| marks.value(&function(tool))).collect();
        let output = self.run(given, &tools, true)?;
        let spans = marks.scan(&output, conversation.len(), &self.settings.stop);
        Ok(self.rendered(spans, Vec::new()))
    }

    fn bridge(
        &self,
        ended: EndedTurn<'_>,
        history: &[Said<'_>],
        new: &[Message],
    ) -> Result<Bridged, RenderError> {
        let end = ended.ids.iter().position(|id| self.stop.contains(id));
        let has_tail = end.is_some_and(|at| at + 1 < ended.ids.len());
        let is_closed = end.is_some_and(|at| ended.ids[at] == self.stop[0]);
        let is_other = end.is_some() && !is_closed && self.settings.thinking == Thinking::Follow;
        let Some(shape) = self.shape(history, new).filter(|_| !has_tail && !is_other) else {
            return Ok(Bridged::Rewrite);
        };
        let mut marks = Marks::new(&self.tokenizer);
        if self.settings.thinking == Thinking::Keep {
            // The place of the dummy's mark.
            marks.text(0, ANSWER)?;
        }
        let mut given = Vec::with_capacity(new.len());
        for (owner, message) in new.iter().enumerate() {
            given.push(self.given(&mut marks, owner, Said::new(message))?);
        }
        let Some(output) = self.continuation(shape, &given)? else { return Ok(Bridged::Rewrite) };
        let spans = marks.scan(&output, new.len(), &self.settings.stop);
        let close = if is_closed { Vec::new() } else { vec![self.stop[0]] };
        Ok(Bridged::Append(self.rendered(spans, close)))
    }

    fn write(&self, action: &Action) -> Vec<TokenId> {
        let mut canvas = Canvas::new(&self.tokenizer, 1);
        match self.settings.calls {
            CallForm::Hermes => hermes_turn(&mut canvas, action),
            CallForm::Llama3 => llama_turn(&mut canvas, action),
        }
        canvas.template(&self.settings.stop[0]);
        ids_of(&canvas.finish().concat())
    }

    fn parse(&self, turn: &[TokenId], tools: &[ToolSpec]) -> Action {
        let text = self.tokenizer.decode(before_stop(turn, &self.stop));
        let action = match self.settings.calls {
            CallForm::Hermes => parse_turn(&text),
            CallForm::Llama3 => parse_llama_turn(&text),
        };
        check_calls(action, tools)
    }

    fn stop_tokens(&self) -> &[TokenId] {
        &self.stop
    }

    fn text(&self, ids: &[TokenId]) -> String {
        self.tokenizer.decode(ids)
    }
}

/// The keys in the order of the template's other users.
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
