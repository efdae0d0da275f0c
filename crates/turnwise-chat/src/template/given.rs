//! The conversion of a conversation to the input of a template.

use serde_json::{Map, Value, json};
use turnwise_environment::{Message, Role, ToolCall};

use crate::python_json::to_python_json;
use crate::thinking;

/// A transformation of each text before the template gets it.
pub(super) trait TextTransform {
    /// Transforms the text of a message.
    fn said(&self, owner: usize, text: &str) -> String;
    /// Transforms the text of a tool or a call, or a name.
    fn named(&self, text: &str) -> String;
    /// Transforms the name of the tool in a call.
    fn called(&self, owner: usize, name: &str) -> String;
}

/// The ids of calls in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ids {
    /// The ids of the messages.
    Own,
    /// Nine letters and digits, as the templates of Mistral require; an id of this form stays.
    Nine,
}

/// The field of a message that has its thoughts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ThoughtField {
    ReasoningContent,
    Reasoning,
    Thinking,
}

impl ThoughtField {
    const ALL: [Self; 3] = [Self::ReasoningContent, Self::Reasoning, Self::Thinking];

    fn name(self) -> &'static str {
        match self {
            Self::ReasoningContent => "reasoning_content",
            Self::Reasoning => "reasoning",
            Self::Thinking => "thinking",
        }
    }

    /// Returns the field of thoughts that a template reads, if it reads any; of several, the first of [`Self::ALL`].
    pub(super) fn of(template: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| names_field(template, field.name()))
    }
}

/// Returns whether a template names a field of a message, as an attribute or as a key.
pub(super) fn names_field(template: &str, field: &str) -> bool {
    let mut places = template.match_indices(field);
    places.any(|(at, name)| {
        let (before, after) = (&template[..at], &template[at + name.len()..]);
        before.ends_with(['.', '\'', '"'])
            && !after.starts_with(|c: char| c.is_alphanumeric() || c == '_')
    })
}

/// How calls are given to a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CallInput {
    pub(super) ids: Ids,
    /// Whether arguments are JSON text, as in chat endpoints, rather than an object.
    pub(super) has_text_arguments: bool,
}

impl CallInput {
    /// The forms in the order in which they are tried: some templates reject ids, or arguments as an object.
    pub(super) const ALL: [Self; 4] = [
        Self { ids: Ids::Own, has_text_arguments: false },
        Self { ids: Ids::Nine, has_text_arguments: false },
        Self { ids: Ids::Own, has_text_arguments: true },
        Self { ids: Ids::Nine, has_text_arguments: true },
    ];
}

/// Returns the messages as values, in the format of chat endpoints.
pub(super) fn given(
    messages: &[&Message],
    form: CallInput,
    thoughts: ThoughtField,
    texts: &impl TextTransform,
) -> Vec<Value> {
    let mut calls = Calls { form, thoughts, open: Vec::new(), n_shown: 0 };
    let messages = messages.iter().enumerate();
    messages.map(|(owner, message)| one(owner, message, &mut calls, texts)).collect()
}

fn one(owner: usize, message: &Message, calls: &mut Calls, texts: &impl TextTransform) -> Value {
    let mut given = Map::new();
    given.insert("role".to_owned(), json!(message.role));
    if let Some(reasoning) = &message.reasoning {
        let field = calls.thoughts.name();
        given.insert(field.to_owned(), texts.said(owner, reasoning).into());
    }
    let content = if message.role == Role::Assistant {
        around_tags(&message.content, &|text| texts.said(owner, text))
    } else {
        texts.said(owner, &message.content)
    };
    given.insert("content".to_owned(), content.into());
    if !message.tool_calls.is_empty() {
        let named = |text: &str| texts.named(text);
        let has_text_arguments = calls.form.has_text_arguments;
        let written = calls.make(&message.tool_calls).into_iter().map(|(id, call)| {
            let name = texts.called(owner, &call.name);
            let arguments = crate::marks::each_text(&call.arguments, &named);
            let arguments = if has_text_arguments && !arguments.is_string() {
                Value::String(to_python_json(&arguments))
            } else {
                arguments
            };
            let function = json!({"name": name, "arguments": arguments});
            json!({"id": named(&id), "type": "function", "function": function})
        });
        given.insert("tool_calls".to_owned(), written.collect());
    }
    if message.role == Role::Tool {
        let (id, name) = calls.answer(message.tool_call_id.as_deref());
        if let Some(id) = id {
            given.insert("tool_call_id".to_owned(), texts.named(&id).into());
        }
        if let Some(name) = name {
            given.insert("name".to_owned(), texts.named(&name).into());
        }
    }
    Value::Object(given)
}

/// Changes the text between thinking tags, but not the tags, which a template searches for.
fn around_tags(text: &str, change: &impl Fn(&str) -> String) -> String {
    let tags = thinking::TAGS.map(|tags| [tags.open, tags.close]);
    let mut changed = String::with_capacity(text.len());
    let mut from = 0;
    for (at, _) in text.match_indices(['<', '[']) {
        let tag = tags.iter().flatten().find(|tag| text[at..].starts_with(**tag));
        if let Some(tag) = tag.filter(|_| at >= from) {
            changed.push_str(&change(&text[from..at]));
            changed.push_str(tag);
            from = at + tag.len();
        }
    }
    changed.push_str(&change(&text[from..]));
    changed
}

/// Calls so far, with the ids in the template's input.
struct Calls {
    form: CallInput,
    thoughts: ThoughtField,
    /// The unanswered calls of the newest message with calls: own id, shown id, tool.
    open: Vec<(String, String, String)>,
    n_shown: usize,
}

impl Calls {
    fn make<'a>(&mut self, calls: &'a [ToolCall]) -> Vec<(String, &'a ToolCall)> {
        self.open.clear();
        let shown = calls.iter().map(|call| {
            let id = self.shown(&call.id);
            self.open.push((call.id.clone(), id.clone(), call.name.clone()));
            (id, call)
        });
        shown.collect()
    }

    /// Returns the id of the answered call, and the name of its tool. An answer without an id, or with an unknown one,
    /// belongs to the next call.
    fn answer(&mut self, id: Option<&str>) -> (Option<String>, Option<String>) {
        let own = |own: &str| id == Some(own);
        let at = self.open.iter().position(|(id, ..)| own(id));
        let at = at.or_else(|| id.is_none_or(str::is_empty).then_some(0));
        match at.filter(|at| *at < self.open.len()).map(|at| self.open.remove(at)) {
            Some((_, shown, name)) => {
                let is_known = id.is_some() || self.form.ids == Ids::Nine;
                (is_known.then_some(shown), Some(name))
            }
            None => (id.map(|id| self.shown(id)), None),
        }
    }

    fn shown(&mut self, id: &str) -> String {
        let is_nine = id.len() == 9 && id.bytes().all(|c| c.is_ascii_alphanumeric());
        if self.form.ids == Ids::Own || is_nine {
            return id.to_owned();
        }
        self.n_shown += 1;
        format!("call{:05}", (self.n_shown - 1) % 100_000)
    }
}
