//! Tools in plain text, for models whose template does not know them.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use turnwise_environment::{Action, CallAttempt, Message, Role, ToolCall, ToolSpec};
use turnwise_rollout::{Bridged, EndedTurn, RenderError, Rendered, Renderer, Said};
use turnwise_trajectory::TokenId;

use crate::ToolPrompt;
use crate::fingerprint::fingerprint;
use crate::python_json::to_python_json;

/// Part of every fingerprint. It is incremented when the same settings give other tokens.
const FORMAT: &str = "text tools 1";

/// A renderer around another one whose template does not mention tools: the system prompt describes them, a call is
/// JSON between `<tool_call>` tags in the text of a turn, and a tool's answer is a message of the user.
///
/// Without tools it renders as the other one does.
pub struct TextTools {
    inner: Arc<dyn Renderer>,
    prompt: ToolPrompt,
    fingerprint: String,
    /// Whether the template shows a system message; otherwise the description precedes the first message of the user.
    has_system: bool,
}

impl TextTools {
    /// Creates the renderer.
    #[must_use]
    pub fn new(inner: Arc<dyn Renderer>, prompt: ToolPrompt) -> Self {
        let settings = serde_json::to_string(&prompt).expect("settings are plain data");
        let identity = format!("{}\n{FORMAT}\n{settings}", inner.fingerprint());
        let has_system = shows_system(&*inner);
        Self { fingerprint: fingerprint(identity.as_bytes()), inner, prompt, has_system }
    }

    /// Converts messages to those that the template gets, and adds the description to the first.
    fn told<'a>(
        &self,
        said: &[Said<'a>],
        tools: &[ToolSpec],
    ) -> Vec<(Cow<'a, Message>, Option<&'a [TokenId]>)> {
        let each = said.iter().map(|said| (self.plain(*said), said.drawn));
        let mut told: Vec<(Cow<'a, Message>, Option<&[TokenId]>)> = each.collect();
        let text = self.prompt.text(tools);
        let place = told.first().map(|(message, _)| message.role);
        match place {
            _ if text.is_empty() => {}
            Some(Role::System) if self.has_system => {
                let first = told[0].0.to_mut();
                first.content = format!("{}\n\n{text}", first.content);
            }
            _ if self.has_system => told.insert(0, (Cow::Owned(Message::system(text)), None)),
            _ => {
                if let Some((message, _)) =
                    told.iter_mut().find(|(message, _)| message.role == Role::User)
                {
                    let message = message.to_mut();
                    message.content = format!("{text}\n\n{}", message.content);
                }
            }
        }
        told
    }

    /// Converts one message: calls and answers of tools become text.
    fn plain<'a>(&self, said: Said<'a>) -> Cow<'a, Message> {
        let message = said.message;
        match (message.role, said.drawn) {
            (Role::Tool, _) => Cow::Owned(Message::user(format!(
                "<tool_response>\n{}\n</tool_response>",
                message.content
            ))),
            (Role::Assistant, Some(drawn)) if !message.tool_calls.is_empty() => {
                let stop = self.inner.stop_tokens();
                let end = drawn.iter().position(|id| stop.contains(id)).unwrap_or(drawn.len());
                Cow::Owned(Message {
                    tool_calls: Vec::new(),
                    content: self.inner.text(&drawn[..end]),
                    ..message.clone()
                })
            }
            (Role::Assistant, None) if !message.tool_calls.is_empty() => {
                let content = with_calls(&message.content, message.tool_calls.iter());
                Cow::Owned(Message { tool_calls: Vec::new(), content, ..message.clone() })
            }
            _ => Cow::Borrowed(message),
        }
    }
}

/// Returns whether a template writes the text of a system message.
#[must_use]
pub fn shows_system(renderer: &dyn Renderer) -> bool {
    const TEXT: &str = "Speak plainly";
    let messages = [Message::system(TEXT), Message::user("question")];
    let Ok(opened) = renderer.render(&messages.each_ref().map(Said::new), &[]) else {
        return false;
    };
    let mut ids = Vec::new();
    opened.messages.iter().flatten().for_each(|span| span.extend_ids(&mut ids));
    renderer.text(&ids).contains(TEXT)
}

/// Returns an action whose calls are a part of its text.
fn as_text(action: &Action) -> Action {
    let text = with_calls(&action.text, action.tool_calls());
    let is_call = |call: &CallAttempt| matches!(call, CallAttempt::Call(_));
    let calls = action.calls.iter().filter(|call| !is_call(call)).cloned().collect();
    Action { text, calls, ..action.clone() }
}

/// Appends calls to a text.
fn with_calls<'a>(text: &str, calls: impl Iterator<Item = &'a ToolCall>) -> String {
    let mut parts: Vec<String> = Vec::new();
    parts.extend((!text.is_empty()).then(|| text.to_owned()));
    parts.extend(calls.map(|call| {
        let name = serde_json::Value::from(call.name.as_str());
        format!(
            "<tool_call>\n{{\"name\": {name}, \"arguments\": {}}}\n</tool_call>",
            to_python_json(&call.arguments)
        )
    }));
    parts.join("\n")
}

impl Renderer for TextTools {
    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn render(
        &self,
        conversation: &[Said<'_>],
        tools: &[ToolSpec],
    ) -> Result<Rendered, RenderError> {
        if tools.is_empty() {
            return self.inner.render(conversation, tools);
        }
        let told = self.told(conversation, tools);
        let said: Vec<Said<'_>> =
            told.iter().map(|(message, drawn)| Said { message, drawn: *drawn }).collect();
        let mut rendered = self.inner.render(&said, &[])?;
        if told.len() > conversation.len() {
            // The description is a message of its own to the template, and a part of the first one here.
            let described = rendered.messages.remove(0);
            if let Some(first) = rendered.messages.first_mut() {
                first.splice(0..0, described);
            }
        }
        Ok(rendered)
    }

    fn bridge(
        &self,
        ended: EndedTurn<'_>,
        history: &[Said<'_>],
        new: &[Message],
    ) -> Result<Bridged, RenderError> {
        self.inner.bridge(ended, history, new)
    }

    fn go_on(
        &self,
        ended: EndedTurn<'_>,
        history: &[Said<'_>],
        new: &[Message],
        tools: &[ToolSpec],
    ) -> Result<Bridged, RenderError> {
        if tools.is_empty() {
            return self.inner.go_on(ended, history, new, tools);
        }
        let told = self.told(history, tools);
        let said: Vec<Said<'_>> =
            told.iter().map(|(message, drawn)| Said { message, drawn: *drawn }).collect();
        let new: Vec<Message> =
            new.iter().map(|message| self.plain(Said::new(message)).into_owned()).collect();
        self.inner.go_on(ended, &said, &new, &[])
    }

    fn write(&self, action: &Action) -> Vec<TokenId> {
        self.inner.write(&as_text(action))
    }

    fn write_after(&self, prefill: &[TokenId], action: &Action) -> Vec<TokenId> {
        self.inner.write_after(prefill, &as_text(action))
    }

    fn parse(&self, turn: &[TokenId], tools: &[ToolSpec]) -> Action {
        self.inner.parse(turn, tools)
    }

    fn shortens(&self, message: &Message, tools: &[ToolSpec]) -> bool {
        if tools.is_empty() {
            return self.inner.shortens(message, tools);
        }
        self.inner.shortens(&self.plain(Said::new(message)), &[])
    }

    fn stop_tokens(&self) -> &[TokenId] {
        self.inner.stop_tokens()
    }

    fn text(&self, ids: &[TokenId]) -> String {
        self.inner.text(ids)
    }
}

impl fmt::Debug for TextTools {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TextTools")
            .field("fingerprint", &self.fingerprint)
            .field("prompt", &self.prompt)
            .finish_non_exhaustive()
    }
}
