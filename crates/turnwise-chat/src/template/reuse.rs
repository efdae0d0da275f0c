//! Sampled turns in history: the tokens that stay, as far as the template keeps their text.

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
    let says_all = is_there(&message.content, rest)
        && message.tool_calls.iter().all(|call| rest.contains(&call.name));
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
    rest_of(&drawn, written, head.len(), thinking::last_close(&drawn).unwrap_or(0))
}

/// Keeps the tokens from a byte on, if the template writes the same text after its first `head` bytes and blanks.
fn rest_of(drawn: &str, written: &str, head: usize, from: usize) -> Kept {
    let rest = &written[head..];
    let said = rest.trim_start();
    // A blank that was sampled is not written a second time; newlines behind a thought are dropped.
    let is_sampled = if from == 0 {
        drawn.starts_with(char::is_whitespace)
    } else {
        drawn.get(from..).is_some_and(|rest| rest.starts_with(' '))
    };
    let blanks = if is_sampled { 0 } else { rest.len() - said.len() };
    let end = said.len() - said.trim_end().len();
    let is_ended = drawn.ends_with(&said[said.len() - end..]);
    Kept::Rest { head: head + blanks, tail: if is_ended { 0 } else { end }, from }
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
