//! What a turn becomes in history: the tokens that were drawn, as far as the template keeps what they say.

use turnwise_environment::Message;
use turnwise_trajectory::TokenId;

use crate::thinking;
use crate::{Thinking, Tokenizer};

/// What stands in history for a turn that was drawn.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kept {
    /// All of it, as it was drawn.
    Whole,
    /// What was drawn after the thinking, between texts of the template that begin and end the turn.
    Rest { head: usize, tail: usize },
    /// The template's own text: it says something else.
    Nothing,
}

/// What becomes of a turn that a template writes as `written`.
///
/// Blanks do not matter: a template trims texts, and what was drawn stays as it was.
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
        return Kept::Nothing;
    }
    let (thoughts, _) = thinking_of(&drawn);
    let thought = message.reasoning.as_deref().unwrap_or_default();
    let keeps_thoughts = !thought.is_empty() && is_there(thought, head);
    if keeps_thoughts || squash(head) == squash(thoughts) {
        return Kept::Whole;
    }
    let said = rest.trim_start();
    let blanks = rest.len() - said.len();
    let is_ended = drawn.ends_with(&said[said.trim_end().len()..]);
    let tail = if is_ended { 0 } else { said.len() - said.trim_end().len() };
    Kept::Rest { head: head.len() + blanks, tail }
}

/// The text up to the end of its thinking, blanks behind it included, and the rest.
fn thinking_of(text: &str) -> (&str, &str) {
    let Some(at) = text.rfind(thinking::CLOSE) else { return ("", text) };
    let end = at + thinking::CLOSE.len();
    let rest = text[end..].trim_start_matches('\n');
    text.split_at(text.len() - rest.len())
}

/// The text without blanks.
pub(super) fn squash(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}
