//! Turns in a template's own words.

use serde_json::Value;
use turnwise_environment::{Action, Message, ToolCall, ToolSpec};
use turnwise_rollout::Renderer;
use turnwise_trajectory::TokenId;

use super::layout::Layout;
use super::program::TemplateInput;
use super::{ANSWER, QUESTION, TemplateRenderer, Writer};
use crate::canvas::Canvas;
use crate::chatml::ids_of;
use crate::thinking;

impl TemplateRenderer {
    /// Encodes the template's output for an action, with the close.
    pub(super) fn write_own(&self, action: &Action) -> Option<Vec<TokenId>> {
        let continued = self.continued(action, &[]);
        let close = continued.as_ref().and_then(|continued| self.close_in(continued));
        let close = close.as_ref().unwrap_or(&self.closes[0]);
        let layouts = self.layouts_of(action, &[], continued);
        layouts.into_iter().find_map(|layout| {
            let turn = layout.messages.get(1)?.turn.clone()?;
            let canvas = Canvas::new(&self.tokenizer, 1);
            let mut writer = Writer { renderer: self, output: &layout.output, canvas };
            writer.text(0, turn);
            writer.canvas.template(close);
            Some(ids_of(&writer.canvas.finish().concat())).filter(|ids| self.says(ids, action))
        })
    }

    /// Returns what ends a turn where the conversation goes on: behind a call, GLM ends it with the name of the next role.
    fn close_in(&self, continued: &Layout) -> Option<String> {
        let message = continued.messages.get(1)?;
        let close = continued.output.text.get(message.turn.as_ref()?.end..message.end)?;
        self.closes.iter().find(|known| *known == close).cloned()
    }

    /// Renders a conversation that goes on after an action: with the answers of its calls, or with another question.
    fn continued(&self, action: &Action, tools: &[ToolSpec]) -> Option<Layout> {
        let mut messages = vec![Message::user(QUESTION), self.as_text(&action.to_message())];
        let answers = messages[1].tool_calls.iter();
        let answers: Vec<Message> =
            answers.map(|call| Message::tool(call.id.as_str(), ANSWER)).collect();
        messages.extend(answers);
        if messages.len() == 2 {
            messages.push(Message::user(QUESTION));
        }
        let messages: Vec<&Message> = messages.iter().collect();
        let script = TemplateInput { messages: &messages, tools, leads_in: true };
        self.program.layout(&self.tokenizer, script, &self.closes).ok()
    }

    /// Returns whether a turn is read as this action.
    fn says(&self, turn: &[TokenId], action: &Action) -> bool {
        let read = self.parse(turn, &[]);
        // A template may write its next text behind a call (Gemma 4).
        let is_followed = !action.calls.is_empty() && read.text.starts_with(&action.text);
        let has_text = read.text == action.text || is_followed;
        has_text
            && read.reasoning == action.reasoning
            && makes(&read, action)
            && self.thinks_first(turn, action)
    }

    /// Returns whether the thoughts of a turn are before its calls: some templates write a message's text behind them.
    fn thinks_first(&self, turn: &[TokenId], action: &Action) -> bool {
        let (Some(thoughts), Some(call)) = (&action.reasoning, action.tool_calls().next()) else {
            return true;
        };
        let text = self.tokenizer().decode(turn);
        text.find(thoughts.trim()) <= text.rfind(&call.name)
    }

    /// Encodes an action whose thoughts the template does not write: the thoughts, then its output for the rest.
    pub(super) fn write_thoughts(&self, action: &Action) -> Option<Vec<TokenId>> {
        let thoughts = action.reasoning.as_deref()?;
        let rest = self.write_own(&Action { reasoning: None, ..action.clone() })?;
        let tags = self.tags.unwrap_or(thinking::USUAL);
        let end = thinking::end_of_empty(&self.tokenizer.decode(&rest), tags);
        let [before, after] = tags.around();
        let mut canvas = Canvas::new(&self.tokenizer, 1);
        canvas.template(&before);
        canvas.content(thoughts);
        canvas.template(&after);
        thinking::keep_from(&self.tokenizer, &rest, end, &mut canvas);
        Some(ids_of(&canvas.finish().concat())).filter(|ids| self.says(ids, action))
    }

    /// Returns the template's outputs for an action, up to its close.
    pub(super) fn written(&self, action: &Action, tools: &[ToolSpec]) -> Vec<String> {
        let continued = self.continued(action, tools);
        let layouts = self.layouts_of(action, tools, continued).into_iter();
        let turns = layouts.filter_map(|layout| {
            let turn = layout.messages.get(1)?.turn.clone()?;
            layout.output.text.get(turn).map(str::to_owned)
        });
        turns.collect()
    }

    /// Renders a conversation of a question and an action, with the lead-in of the next turn and without it: some
    /// templates write the thoughts of the last turn, or its calls, only if no other turn follows. Others write a turn
    /// only if the conversation goes on (Nemotron Nano 2).
    fn layouts_of(
        &self,
        action: &Action,
        tools: &[ToolSpec],
        continued: Option<Layout>,
    ) -> Vec<Layout> {
        let messages = [Message::user(QUESTION), self.as_text(&action.to_message())];
        let messages: Vec<&Message> = messages.iter().collect();
        let has_thoughts = action.reasoning.is_some();
        let layouts = [!has_thoughts, has_thoughts].into_iter().filter_map(|leads_in| {
            let script = TemplateInput { messages: &messages, tools, leads_in };
            self.program.layout(&self.tokenizer, script, &self.closes).ok()
        });
        // Without a close, the text of the next message may look like the turn's.
        let continued = continued.filter(|continued| self.close_in(continued).is_some());
        layouts.chain(continued).collect()
    }
}

/// Returns whether a parsed turn makes the calls of an action. A format without types has strings for numbers.
fn makes(read: &Action, action: &Action) -> bool {
    let is_same = |read: &Value, meant: &Value| {
        let written = meant.to_string();
        read == meant || read.as_str() == Some(written.as_str())
    };
    let all_same = |read: &ToolCall, meant: &ToolCall| {
        let (Some(ours), Some(theirs)) = (read.arguments.as_object(), meant.arguments.as_object())
        else {
            return false;
        };
        read.name == meant.name
            && ours.len() == theirs.len()
            && theirs
                .iter()
                .all(|(key, meant)| ours.get(key).is_some_and(|read| is_same(read, meant)))
    };
    let n_calls = action.calls.len();
    let pairs = read.tool_calls().zip(action.tool_calls());
    read.calls.len() == n_calls
        && pairs.filter(|(read, meant)| all_same(read, meant)).count() == n_calls
}
