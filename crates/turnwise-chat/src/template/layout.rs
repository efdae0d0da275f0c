//! Assignment of a template's output to messages.

use std::ops::Range;

use turnwise_environment::{Message, Role};

use crate::marks::Output;
use crate::thinking;

/// A conversation as written by a template.
pub(super) struct Layout {
    pub(super) output: Output,
    /// The ranges of the messages, consecutive from the start; the rest is the lead-in to the next turn.
    pub(super) messages: Vec<MessageSpan>,
}

/// The range of a message.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct MessageSpan {
    pub(super) start: usize,
    /// For an assistant's message: the end of the turn's lead-in, and the start of its close.
    pub(super) turn: Option<Range<usize>>,
    /// Includes the close, if there is one.
    pub(super) end: usize,
}

/// Renders other conversations with the same template, to find the edges of a turn.
pub(super) trait Probe {
    /// Returns the output for the messages up to this one.
    fn ended(&self, owner: usize) -> Option<String>;
    /// Returns the output for the messages before this one and an answer without calls.
    fn answered(&self, owner: usize) -> Option<String>;
}

impl Layout {
    /// Divides the output among messages. `lead_ins` are the texts before each turn, the next one included; a message
    /// ends with the first of `closes` after its text.
    pub(super) fn new(
        output: Output,
        messages: &[&Message],
        lead_ins: &[String],
        closes: &[String],
        is_control: impl Fn(&str, usize) -> Option<usize>,
        probe: &dyn Probe,
    ) -> Self {
        let mut divider = Divider { output: &output, messages, lead_ins, closes, probe, at: 0 };
        let mut parts = Vec::with_capacity(messages.len());
        for (owner, message) in messages.iter().enumerate() {
            let next = messages.get(owner + 1).map(|next| next.role);
            parts.push(if message.role == Role::Assistant {
                divider.turn(owner, messages.len(), &is_control)
            } else {
                divider.message(owner, messages.len(), next)
            });
        }
        Self { messages: parts, output }
    }

    /// Returns the start of the lead-in to the next turn.
    pub(super) fn end(&self) -> usize {
        self.messages.last().map_or(0, |part| part.end)
    }
}

struct Divider<'a> {
    output: &'a Output,
    messages: &'a [&'a Message],
    lead_ins: &'a [String],
    closes: &'a [String],
    probe: &'a dyn Probe,
    /// Everything before is assigned.
    at: usize,
}

impl Divider<'_> {
    fn message(&mut self, owner: usize, n_owners: usize, next: Option<Role>) -> MessageSpan {
        let start = self.at;
        // A message without text has its range in that of the next message with text.
        let Some(said) = self.said(owner) else {
            return MessageSpan { start, turn: None, end: start };
        };
        let mut limit = self.next_said(owner, n_owners);
        if next.is_none_or(|role| role == Role::Assistant)
            && let Some(lead_in) = self.find_lead_in(owner + 1, said.end, limit)
        {
            limit = lead_in.start;
        }
        self.at = self.close(said.end, limit).map_or(said.end, |close| close.end);
        MessageSpan { start, turn: None, end: self.at }
    }

    fn turn(
        &mut self,
        owner: usize,
        n_owners: usize,
        is_control: &impl Fn(&str, usize) -> Option<usize>,
    ) -> MessageSpan {
        let start = self.at;
        let next = self.next_said(owner, n_owners);
        let said = self.said(owner).map(|said| self.up_to_close(owner, said, next));
        let first = self.before_tag(start, said.as_ref().map_or(next, |said| said.start));
        let from = match self.find_lead_in(owner, start, first) {
            Some(lead_in) => lead_in.end,
            None => self
                .common_lead_in(owner, start, first)
                .or_else(|| self.shared_lead_in(owner, start, first))
                .unwrap_or_else(|| self.after_control(start, first, is_control)),
        };
        let said_to = said.map_or(from, |said| said.end.max(from));
        let close = self.close(said_to, next);
        let (to, end) = close.map_or_else(
            || {
                let to = self.unclosed(owner, said_to, next);
                (to, to)
            },
            |close| (close.start, close.end),
        );
        self.at = end;
        MessageSpan { start, turn: Some(from..to), end }
    }

    /// Returns the end of a turn that the template does not close: the lead-in of the next turn, or the end of the
    /// output. A turn that ends with a call has other text of the template behind its own.
    fn unclosed(&self, owner: usize, from: usize, next: usize) -> usize {
        let rest = &self.output.text[from..next.max(from)];
        let call = self.after_call(owner).filter(|call| rest.starts_with(call.as_str()));
        if let Some(call) = call {
            return from + call.len();
        }
        match self.find_lead_in(owner + 1, from, next) {
            Some(lead_in) => lead_in.start,
            None if next == self.output.text.len() => next,
            None => from,
        }
    }

    /// Returns the template's text behind the name of the last tool that a turn calls, if the conversation ended there.
    /// The close of a turn may differ in history (Olmo 3), so that it is left out.
    fn after_call(&self, owner: usize) -> Option<String> {
        let call = self.messages[owner].tool_calls.last()?;
        let text = self.probe.ended(owner)?;
        let rest = &text[text.rfind(&call.name)? + call.name.len()..];
        let closes = self.closes.iter().filter_map(|close| rest.find(close.as_str()));
        Some(rest[..closes.min().unwrap_or(rest.len())].to_owned())
    }

    /// Returns the unassigned range of an owner's text, up to another owner's.
    fn said(&self, owner: usize) -> Option<Range<usize>> {
        let mut later = self.output.said.iter().filter(|(said, _)| said.end > self.at);
        let (first, _) = later.find(|(_, other)| *other == owner)?;
        let own = later.take_while(|(_, other)| *other == owner);
        let end = own.last().map_or(first.end, |(last, _)| last.end);
        Some(first.start.max(self.at)..end)
    }

    /// Returns the texts of an owner up to the end of its turn. A template may write the name of a call again behind
    /// the turn, with its answer (Gemma 4, gpt-oss).
    fn up_to_close(&self, owner: usize, said: Range<usize>, next: usize) -> Range<usize> {
        let own = self.output.said.iter().filter(|(part, other)| {
            *other == owner && said.start <= part.start && part.end <= said.end
        });
        let parts: Vec<&Range<usize>> = own.map(|(part, _)| part).collect();
        let mut pairs = parts.windows(2);
        if let Some(pair) = pairs.find(|pair| self.close(pair[0].end, pair[1].start).is_some()) {
            return said.start..pair[0].end;
        }
        let has_end = parts.len() < 2
            || self.messages[owner].tool_calls.is_empty()
            || self.close(said.end, next).is_some();
        let end = (!has_end).then(|| self.probe.ended(owner)).flatten();
        let Some(end) = end.map(|ended| n_common(&ended, &self.output.text)) else { return said };
        let last = parts.iter().rev().find(|part| part.end <= end);
        said.start..last.map_or(said.end, |last| last.end)
    }

    /// Returns the start of the next text of a later owner.
    fn next_said(&self, owner: usize, n_owners: usize) -> usize {
        let later = (owner + 1..n_owners).filter_map(|owner| self.said(owner));
        later.map(|said| said.start).min().unwrap_or(self.output.text.len())
    }

    fn find_lead_in(&self, owner: usize, from: usize, to: usize) -> Option<Range<usize>> {
        let lead_in = self.lead_ins.get(owner).filter(|lead_in| !lead_in.is_empty())?;
        let at = from + self.output.text.get(from..to)?.find(lead_in.as_str())?;
        Some(at..at + lead_in.len())
    }

    /// Returns the end of the text that the template writes before a turn, whatever it says: the lead-in of history
    /// differs from that of the next turn.
    fn common_lead_in(&self, owner: usize, from: usize, to: usize) -> Option<usize> {
        let end = n_common(&self.probe.answered(owner)?, &self.output.text).min(to);
        (end >= from && self.output.text.is_char_boundary(end)).then_some(end)
    }

    /// Returns the end of a lead-in that the template writes differently in history: at the last control token that
    /// both versions share.
    fn shared_lead_in(&self, owner: usize, from: usize, to: usize) -> Option<usize> {
        let lead_in = self.lead_ins.get(owner)?;
        let before = self.output.text.get(from..to)?;
        let skipped = before.len() - before.trim_start().len();
        let pairs = lead_in.bytes().zip(before.trim_start().bytes());
        let n_shared = pairs.take_while(|(a, b)| a == b).count();
        let shared = lead_in.get(..n_shared)?.rfind('>').or_else(|| lead_in[..n_shared].rfind(']'));
        Some(from + skipped + shared? + 1)
    }

    /// Returns the place before a thinking tag just before a text: the tag is part of the turn.
    fn before_tag(&self, from: usize, to: usize) -> usize {
        let before = self.output.text.get(from..to).unwrap_or_default().trim_end();
        let mut tags = thinking::TAGS.into_iter();
        let before = tags.find_map(|tags| before.strip_suffix(tags.open));
        before.map_or(to, |before| from + before.len())
    }

    /// Returns the first close in this range of the template's own text.
    fn close(&self, from: usize, to: usize) -> Option<Range<usize>> {
        let part = self.output.text.get(from..to)?;
        let is_whole = |close: &Range<usize>| !self.output.has_joint_inside(close);
        let places = self.closes.iter().flat_map(|close| {
            let found = part.match_indices(close.as_str());
            found.map(|(at, close)| from + at..from + at + close.len())
        });
        places.filter(is_whole).min_by_key(|close| (close.start, std::cmp::Reverse(close.end)))
    }

    /// Returns the end of the last control token before a text, if only blanks are between; otherwise the text's start.
    fn after_control(
        &self,
        from: usize,
        to: usize,
        is_control: &impl Fn(&str, usize) -> Option<usize>,
    ) -> usize {
        let before = self.output.text.get(from..to).unwrap_or_default();
        let blanks = from + before.trim_end().len();
        let ends = |at: &usize| is_control(&self.output.text, *at) == Some(blanks);
        let mut places = before.char_indices().map(|(at, _)| from + at);
        if places.any(|at| ends(&at)) { blanks } else { to }
    }
}

/// Returns the number of bytes with which both texts begin.
fn n_common(a: &str, b: &str) -> usize {
    a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count()
}
