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

/// Writes a sampled turn without its thinking. What follows the thinking stays as it was sampled.
pub(crate) fn strip(tokenizer: &Tokenizer, turn: &[TokenId], canvas: &mut Canvas<'_>) {
    match tokenizer.decode(turn).rfind(CLOSE) {
        Some(at) => keep_from(tokenizer, turn, at + CLOSE.len(), canvas),
        None => canvas.verbatim(turn),
    }
}

/// Writes the tokens of a sampled turn from this byte of its text on, as they were sampled. Tokens of newlines at the front are left
/// out, and a newline in one token with other text stays. Only of a token that the place divides, the text is encoded anew.
pub(crate) fn keep_from(
    tokenizer: &Tokenizer,
    turn: &[TokenId],
    from: usize,
    canvas: &mut Canvas<'_>,
) {
    if from == 0 {
        return canvas.verbatim(turn);
    }
    let text = tokenizer.decode(turn);
    let counts: Vec<usize> = (0..=turn.len()).collect();
    let reaches = |n: &usize| tokenizer.decode(&turn[..*n]).get(..from) == text.get(..from);
    let mut n = counts.partition_point(|n| !reaches(n));
    let mut head = tokenizer.decode(&turn[..n]);
    let before = tokenizer.decode(&turn[..n.saturating_sub(1)]).len();
    let blanks = text.get(before..from).unwrap_or_default();
    if head.len() > from && !blanks.is_empty() && blanks.trim().is_empty() {
        // The token is divided behind blanks: it stays.
        return canvas.verbatim(&turn[n - 1..]);
    }
    if head.len() > from {
        // A character that is not whole yet: it has at most three more tokens.
        for _ in 0..3 {
            if n < turn.len() && head.ends_with('\u{fffd}') {
                n += 1;
                head = tokenizer.decode(&turn[..n]);
            }
        }
    }
    let divided = head.get(from..).unwrap_or_default().trim_start_matches('\n');
    canvas.content(divided);
    let is_newlines = |id: &TokenId| {
        let text = tokenizer.token_text(*id).unwrap_or_default();
        !text.is_empty() && text.chars().all(|c| c == '\n')
    };
    let n_newlines = turn[n..].iter().take_while(|id| is_newlines(id)).count();
    canvas.verbatim(&turn[if divided.is_empty() { n + n_newlines } else { n }..]);
}
