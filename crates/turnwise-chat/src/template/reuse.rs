//! Sampled turns in history: the tokens that stay, as far as the template keeps their text.

use std::ops::Range;

use turnwise_environment::Message;
use turnwise_trajectory::TokenId;

use crate::thinking;
use crate::{Thinking, Tokenizer};

/// What history contains for a sampled turn.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kept {
    /// All sampled tokens.
    Whole,
    /// The sampled tokens from the byte `from` of their text on, between texts of the template at the start and the end
    /// of the turn.
    Rest { head: usize, tail: usize, from: usize },
    /// The template's own text, because it differs.
    Nothing,
}

/// Decides what history contains for a turn that the template writes as `written`.
///
/// Blanks are ignored: a template trims texts, and sampled tokens stay unchanged.
pub(super) fn kept(
    tokenizer: &Tokenizer,
    mode: Thinking,
    turn: &[TokenId],
    message: &Message,
    written: &str,
) -> Kept {
    let drawn = tokenizer.decode(turn);
    if mode == Thinking::Keep || squash(&drawn) == squash(written) {
        return Kept::Whole;
    }
    let (head, rest) = thinking_of(written);
    let is_there = |text: &str, inside: &str| squash(inside).contains(&squash(text));
    let has_calls = |text: &str| message.tool_calls.iter().all(|call| text.contains(&call.name));
    let says_all = is_there(&message.content, rest) && has_calls(rest);
    if !says_all {
        return match end_in(&drawn, written) {
            Some(from) => rest_of(&drawn, written, 0, from),
            None => Kept::Nothing,
        };
    }
    let (thoughts, _) = thinking_of(&drawn);
    let thought = message.reasoning.as_deref().unwrap_or_default();
    let keeps_thoughts = !thought.is_empty() && is_there(thought, head);
    if keeps_thoughts || squash(head) == squash(thoughts) {
        return Kept::Whole;
    }
    let from = thinking::last_close(&drawn).unwrap_or(0);
    // A policy may think behind a call.
    if !has_calls(drawn.get(from..).unwrap_or_default()) {
        return Kept::Nothing;
    }
    rest_of(&drawn, written, head.len(), from)
}

/// Keeps the tokens from a byte on, between the template's texts around the same text. A template that writes something
/// else has its text after its first `head` bytes replaced.
fn rest_of(drawn: &str, written: &str, head: usize, from: usize) -> Kept {
    let same = place_of(written, drawn.get(from..).unwrap_or_default());
    let said = same.unwrap_or_else(|| {
        let rest = &written[head..];
        let start = written.len() - rest.trim_start().len();
        start..written.trim_end().len().max(start)
    });
    // A blank that was sampled is not written a second time; newlines behind a thought are dropped.
    let is_sampled = if from == 0 {
        drawn.starts_with(char::is_whitespace)
    } else {
        drawn.get(from..).is_some_and(|rest| rest.starts_with(' '))
    };
    let before = written[..said.start].trim_end().len().max(head);
    let behind = &written[said.end..];
    let is_ended = behind.trim().is_empty() && drawn.ends_with(behind);
    let tail = if is_ended { 0 } else { behind.len() };
    Kept::Rest { head: if is_sampled { before } else { said.start }, tail, from }
}

/// Returns the last range of a text that equals another one but for blanks.
fn place_of(text: &str, wanted: &str) -> Option<Range<usize>> {
    let (wanted, whole) = (squash(wanted), squash(text));
    let first = whole[..whole.rfind(&wanted).filter(|_| !wanted.is_empty())?].chars().count();
    let mut places = text.char_indices().filter(|(_, c)| !c.is_whitespace()).skip(first);
    let start = places.clone().next()?.0;
    let (last, c) = places.nth(wanted.chars().count() - 1)?;
    Some(start..last + c.len_utf8())
}

/// Returns the start of the written text in the sampled text, if that ends with it.
fn end_in(drawn: &str, written: &str) -> Option<usize> {
    let end = squash(written);
    if !squash(drawn).ends_with(&end) {
        return None;
    }
    let mut places = drawn.char_indices().filter(|(_, c)| !c.is_whitespace()).rev();
    places.nth(end.chars().count().checked_sub(1)?).map(|(at, _)| at)
}

/// Splits a text after its thinking and the blanks that follow.
fn thinking_of(text: &str) -> (&str, &str) {
    let Some(end) = thinking::last_close(text) else { return ("", text) };
    let rest = text[end..].trim_start_matches('\n');
    text.split_at(text.len() - rest.len())
}

/// Removes blanks.
pub(super) fn squash(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}
