use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use turnwise_environment::{Message, Role};
use turnwise_trajectory::TokenId;

use crate::Tokenizer;
use crate::canvas::Canvas;

pub(crate) const OPEN: &str = "<think>";
pub(crate) const CLOSE: &str = "</think>";
/// What stands in place of thoughts that a model shall not have.
pub(crate) const EMPTY: &str = "<think>\n\n</think>\n\n";

/// What becomes of thinking in past turns. Chosen for a run, and the same in training and in serving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Thinking {
    /// It stays in context, and conversations are only appended to.
    #[default]
    Keep,
    /// What the model's template does; where it strips thinking, the conversation forks.
    Follow,
}

/// Whether a message asks something of the model: user text that is not the answer of a tool.
pub(crate) fn is_query(message: &Message) -> bool {
    let text = &message.content;
    let is_answer = text.starts_with("<tool_response>") && text.ends_with("</tool_response>");
    message.role == Role::User && !is_answer
}

/// The place of the last query; the last message where there is none, as Qwen 3's template has it.
pub(crate) fn last_query<'a>(messages: impl Iterator<Item = &'a Message>) -> Option<usize> {
    let (mut last, mut query) = (None, None);
    for (index, message) in messages.enumerate() {
        last = Some(index);
        if is_query(message) {
            query = last;
        }
    }
    query.or(last)
}

/// Whether a turn has a block of thinking with nothing in it.
pub(crate) fn is_empty_block(turn: &str) -> bool {
    let thoughts = turn.split_once(CLOSE).map(|(before, _)| before.rsplit(OPEN).next());
    thoughts.flatten().is_some_and(|thoughts| thoughts.trim().is_empty())
}

/// An assistant message's thoughts, if any, and the rest of its text. Thoughts may stand in the text.
pub(crate) fn split(message: &Message) -> (Option<&str>, &str) {
    let text = message.content.as_str();
    if let Some(reasoning) = message.reasoning.as_deref() {
        // A template asks whether there is any before it trims: a lone newline makes an empty block.
        return ((!reasoning.is_empty()).then(|| reasoning.trim_matches('\n')), text);
    }
    let Some((before, _)) = text.split_once(CLOSE) else { return (None, text) };
    let thoughts = before.rsplit(OPEN).next().unwrap_or_default().trim_matches('\n');
    let rest = text.rsplit(CLOSE).next().unwrap_or_default().trim_start_matches('\n');
    ((!thoughts.is_empty()).then_some(thoughts), rest)
}

/// Writes a drawn turn without its thinking. What follows the thinking stays as it was drawn, unless its first token holds
/// newlines of the thinking's end and more.
pub(crate) fn strip(tokenizer: &Tokenizer, turn: &[TokenId], canvas: &mut Canvas<'_>) {
    let close = tokenizer.token_id(CLOSE).filter(|id| tokenizer.is_control(*id));
    let after = close.and_then(|close| turn.iter().rposition(|id| *id == close));
    if let Some(at) = after {
        let mut rest = &turn[at + 1..];
        let text_of = |id: &TokenId| tokenizer.decode(&[*id]);
        while let [first, after @ ..] = rest
            && text_of(first).chars().all(|c| c == '\n')
        {
            rest = after;
        }
        if rest.first().is_none_or(|first| !text_of(first).starts_with('\n')) {
            return canvas.verbatim(rest);
        }
        return canvas.content(tokenizer.decode(rest).trim_start_matches('\n'));
    }
    let text = tokenizer.decode(turn);
    match text.rsplit_once(CLOSE) {
        Some((_, rest)) => canvas.content(rest.trim_start_matches('\n')),
        None => canvas.verbatim(turn),
    }
}
