//! A model's templates as programs, and the rendering of conversations.

use minijinja::Environment;
use serde_json::{Map, Value};
use turnwise_environment::{Message, Role, ToolSpec};
use turnwise_rollout::RenderError;

use super::given::{CallInput, TextTransform, ThoughtField, given, names_field};
use super::layout::{Layout, Probe};
use super::{ANSWER, function};
use crate::marks::{self, Output};
use crate::{ChatError, TemplateSettings, Tokenizer, jinja, thinking};

/// An output with more bytes than this per token of the context cannot fit into it.
const BYTES_PER_TOKEN: usize = 4;

/// The templates of a model.
pub(super) struct Program {
    usual: Environment<'static>,
    /// The template for conversations with tools, if a model has two.
    with_tools: Option<Environment<'static>>,
    arguments: Map<String, Value>,
    /// The field of thoughts in the input.
    thoughts: ThoughtField,
    source: String,
    limit: usize,
}

/// A conversation to render.
#[derive(Clone, Copy)]
pub(super) struct TemplateInput<'a> {
    pub(super) messages: &'a [&'a Message],
    pub(super) tools: &'a [ToolSpec],
    /// Whether the lead-in to the next turn follows.
    pub(super) leads_in: bool,
}

impl Program {
    pub(super) fn new(
        usual: &str,
        with_tools: Option<&str>,
        settings: &TemplateSettings,
    ) -> Result<Self, ChatError> {
        let environment = |template: &str| {
            jinja::environment(template, settings.times.clone(), settings.time.as_deref())
                .map_err(|error| ChatError::Template(error.to_string()))
        };
        Ok(Self {
            usual: environment(usual)?,
            with_tools: with_tools.map(environment).transpose()?,
            arguments: settings.arguments.clone(),
            thoughts: ThoughtField::of(usual).unwrap_or(ThoughtField::ReasoningContent),
            source: usual.to_owned(),
            limit: settings.max_context_tokens.saturating_mul(BYTES_PER_TOKEN),
        })
    }

    /// Returns whether the usual template reads a field of messages.
    pub(super) fn reads(&self, field: &str) -> bool {
        names_field(&self.source, field)
    }

    /// Renders a conversation.
    fn run(
        &self,
        script: TemplateInput<'_>,
        form: CallInput,
        texts: &impl TextTransform,
    ) -> Result<String, RenderError> {
        let named = |text: &str| texts.named(text);
        let tools: Vec<Value> = script.tools.iter().map(function).collect();
        let tools = if tools.is_empty() {
            Value::Null
        } else {
            marks::each_text(&Value::Array(tools), &named)
        };
        let has_tools = !script.tools.is_empty();
        let environment = self.with_tools.as_ref().filter(|_| has_tools).unwrap_or(&self.usual);
        let mut context = self.arguments.clone();
        // Documents are `None` for transformers, and therefore defined.
        context.entry("documents").or_insert(Value::Null);
        let messages = given(script.messages, form, self.thoughts, texts);
        context.insert("messages".to_owned(), Value::Array(messages));
        context.insert("tools".to_owned(), tools);
        context.insert("add_generation_prompt".to_owned(), Value::Bool(script.leads_in));
        jinja::render(environment, &Value::Object(context), self.limit)
    }

    /// Renders a conversation and the lead-in to the next turn, and divides the text among the messages.
    ///
    /// The text is the template's output for the unchanged texts. A second rendering, with marks around the texts,
    /// shows their places. A template that inspects its texts may then write something else: in that case, texts are
    /// searched for in the first rendering, and any text that contains the name of a control token is guarded there.
    pub(super) fn layout(
        &self,
        tokenizer: &Tokenizer,
        script: TemplateInput<'_>,
        closes: &[String],
    ) -> Result<Layout, RenderError> {
        let (form, plain) = self.plain(script)?;
        let lead_in = self.lead_in(script, form, &plain);
        let marked =
            self.run(script, form, &Marked { tokenizer }).ok().map(|text| Output::read(&text));
        let marked = marked.filter(|output| output.text == plain && !output.is_torn(tokenizer));
        let lead_ins = match lead_in {
            Some(lead_in) => vec![before_thinking(lead_in.trim_start()); script.messages.len() + 1],
            None => self.lead_ins(script, form),
        };
        let output = if let Some(output) = marked {
            output
        } else {
            let guarded = Guarded { tokenizer, names_any: false.into() };
            let text = self.run(script, form, &guarded)?;
            let text = if guarded.names_any.get() { text } else { plain };
            found(Output::read(&text), script.messages, &lead_ins)
        };
        let is_control = |text: &str, at: usize| {
            tokenizer.added().control_at(text, at).map(|found| at + found.text.len())
        };
        let probe = Variations { program: self, script, form };
        Ok(Layout::new(output, script.messages, &lead_ins, closes, is_control, &probe))
    }

    /// Returns the template's own output. A template that rejects the form of calls gets another one.
    pub(super) fn plain(
        &self,
        script: TemplateInput<'_>,
    ) -> Result<(CallInput, String), RenderError> {
        let [first, others @ ..] = CallInput::ALL;
        let error = match self.run(script, first, &Plain) {
            Ok(text) => return Ok((first, text)),
            Err(error) => error,
        };
        let mut others = others.into_iter();
        let other = others.find_map(|form| Some((form, self.run(script, form, &Plain).ok()?)));
        other.ok_or(error)
    }

    /// Returns the lead-in that the template adds; empty if it adds nothing, or changes other text too.
    fn lead_in(&self, script: TemplateInput<'_>, form: CallInput, plain: &str) -> Option<String> {
        let ended = TemplateInput { leads_in: false, ..script };
        let without = self.run(ended, form, &Plain).ok()?;
        let added = plain.strip_prefix(without.as_str()).unwrap_or_default();
        (!added.is_empty()).then(|| added.to_owned())
    }

    /// Returns the lead-in of each assistant message, and of the next turn. If the template adds none, it is the
    /// template's text after the text before.
    fn lead_ins(&self, script: TemplateInput<'_>, form: CallInput) -> Vec<String> {
        let lead_in = |n: usize| -> Option<String> {
            let is_turn = script.messages.get(n).is_none_or(|next| next.role == Role::Assistant);
            let last = script.messages[..n].last().filter(|_| is_turn)?;
            let messages = &script.messages[..n];
            let before = TemplateInput { messages, leads_in: true, ..script };
            let text = self.run(before, form, &Plain).ok()?;
            let said = last.content.trim();
            let at = text.rfind(said)? + said.len();
            Some(before_thinking(&text[at..]))
        };
        (0..=script.messages.len()).map(|n| lead_in(n).unwrap_or_default()).collect()
    }
}

/// Conversations that begin as another one does.
struct Variations<'a> {
    program: &'a Program,
    script: TemplateInput<'a>,
    form: CallInput,
}

impl Probe for Variations<'_> {
    fn ended(&self, owner: usize) -> Option<String> {
        let messages = &self.script.messages[..=owner];
        let ended = TemplateInput { messages, leads_in: false, ..self.script };
        self.program.run(ended, self.form, &Plain).ok()
    }

    fn answered(&self, owner: usize) -> Option<String> {
        let answer = Message::assistant(ANSWER);
        let mut messages = self.script.messages.to_vec();
        messages[owner] = &answer;
        // Later messages decide what history has of earlier thoughts; answers of tools need their calls.
        [messages.len(), owner + 1].into_iter().find_map(|n| {
            let answered =
                TemplateInput { messages: &messages[..n], leads_in: false, ..self.script };
            self.program.run(answered, self.form, &Plain).ok()
        })
    }
}

/// Returns the text before the place of thinking in a lead-in.
fn before_thinking(lead_in: &str) -> String {
    lead_in[..thinking::first_open(lead_in).unwrap_or(lead_in.len())].to_owned()
}

/// Unchanged texts.
struct Plain;

impl TextTransform for Plain {
    fn said(&self, _owner: usize, text: &str) -> String {
        marks::unmarked(text)
    }

    fn named(&self, text: &str) -> String {
        marks::unmarked(text)
    }

    fn called(&self, _owner: usize, name: &str) -> String {
        marks::unmarked(name)
    }
}

/// Texts with marks around them.
struct Marked<'a> {
    tokenizer: &'a Tokenizer,
}

impl TextTransform for Marked<'_> {
    fn said(&self, owner: usize, text: &str) -> String {
        marks::marked(self.tokenizer, owner, text)
    }

    fn named(&self, text: &str) -> String {
        marks::guarded(self.tokenizer, text)
    }

    fn called(&self, owner: usize, name: &str) -> String {
        marks::marked(self.tokenizer, owner, name)
    }
}

/// Texts with guarded names of control tokens.
struct Guarded<'a> {
    tokenizer: &'a Tokenizer,
    /// Whether an unguarded text contains such a name.
    names_any: std::cell::Cell<bool>,
}

impl Guarded<'_> {
    fn guarded(&self, text: &str) -> String {
        let plain = marks::unmarked(text);
        let guarded = marks::guarded(self.tokenizer, &plain);
        if guarded != plain {
            self.names_any.set(true);
        }
        guarded
    }
}

impl TextTransform for Guarded<'_> {
    fn said(&self, _owner: usize, text: &str) -> String {
        self.guarded(text)
    }

    fn named(&self, text: &str) -> String {
        self.guarded(text)
    }

    fn called(&self, _owner: usize, name: &str) -> String {
        self.guarded(name)
    }
}

/// Returns the output with the places of the messages' texts, as far as they are found in order. The text of a turn is
/// looked for behind the turn's lead-in: a policy may sample the name of the control token that a lead-in begins with.
fn found(mut output: Output, messages: &[&Message], lead_ins: &[String]) -> Output {
    let mut at = 0;
    for (owner, message) in messages.iter().enumerate() {
        if message.role == Role::Assistant {
            at = after_lead_in(&output.text, at, message, &lead_ins[owner]);
        }
        let names = message.tool_calls.iter().map(|call| call.name.as_str());
        let texts = message.reasoning.as_deref().into_iter().chain([message.content.as_str()]);
        for text in texts.chain(names) {
            let text = text.trim();
            let place = output.text[at..].find(text).filter(|_| !text.is_empty());
            if let Some(place) = place {
                output.said.push((at + place..at + place + text.len(), owner));
                at += place + text.len();
            }
        }
    }
    output
}

/// Returns the end of the lead-in from `at` on; `at` itself if there is none before the message's text.
fn after_lead_in(text: &str, at: usize, message: &Message, lead_in: &str) -> usize {
    let place = |part: &str| text[at..].find(part).filter(|_| !part.is_empty());
    let first = message.reasoning.as_deref().unwrap_or(&message.content).trim();
    match place(lead_in) {
        Some(found) if place(first).is_none_or(|said| found <= said) => at + found + lead_in.len(),
        _ => at,
    }
}
