use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use turnwise_environment::{Message, Role};
use turnwise_trajectory::TokenId;

use crate::Tokenizer;
use crate::canvas::Canvas;

pub(crate) const OPEN: &str = "<think>";
pub(crate) const CLOSE: &str = "</think>";
/// An empty thinking block, for models that must not think.
pub(crate) const EMPTY: &str = "<think>\n\n</think>\n\n";

/// The tags around a thought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tags {
    pub(crate) open: &'static str,
    pub(crate) close: &'static str,
}

/// The tags that most models write.
pub(crate) const USUAL: Tags = Tags { open: OPEN, close: CLOSE };

impl Tags {
    /// Returns the texts before and after a thought; most models write newlines around it.
    pub(crate) fn around(self) -> [String; 2] {
        if self == USUAL {
            return [format!("{OPEN}\n"), format!("\n{CLOSE}\n\n")];
        }
        [self.open.to_owned(), self.close.to_owned()]
    }
}

/// The end of a message of a thought in gpt-oss, and the beginning of the next one.
const CHANNEL_CLOSE: &str = "<|end|><|start|>assistant";

/// The tags of known models.
pub(crate) const TAGS: [Tags; 10] = [
    USUAL,
    Tags { open: "[THINK]", close: "[/THINK]" },
    Tags { open: "<|START_THINKING|>", close: "<|END_THINKING|>" },
    Tags { open: "<seed:think>", close: "</seed:think>" },
    Tags { open: "<longcat_think>", close: "</longcat_think>" },
    Tags { open: "<|inner_prefix|>", close: "<|inner_suffix|>" },
    Tags { open: "<|channel>thought", close: "<channel|>" },
    Tags { open: "<|start_think|>", close: "<|end_think|>" },
    Tags { open: "<mm:think>", close: "</mm:think>" },
    Tags { open: "<think:opensource>", close: "</think:opensource>" },
];

/// Returns the tags of the last thought that begins in a text, and whether the text ends within it.
pub(crate) fn last_tags(text: &str) -> Option<(Tags, bool)> {
    let places = TAGS.into_iter().filter_map(|tags| Some((text.rfind(tags.open)?, tags)));
    let (at, tags) = places.max_by_key(|(at, _)| *at)?;
    Some((tags, !text[at..].contains(tags.close)))
}

/// Returns the place where a thought opens in a text.
pub(crate) fn first_open(text: &str) -> Option<usize> {
    TAGS.into_iter().filter_map(|tags| text.find(tags.open)).min()
}

/// Returns the number of thoughts that open in a text.
pub(crate) fn n_opened(text: &str) -> usize {
    TAGS.into_iter().map(|tags| text.matches(tags.open).count()).sum()
}

/// Returns the end of the last thought in a turn. In gpt-oss, a message of another channel follows a thought.
pub(crate) fn last_close(turn: &str) -> Option<usize> {
    let closes = TAGS.into_iter().map(|tags| tags.close).chain([CHANNEL_CLOSE]);
    closes.filter_map(|close| Some(turn.rfind(close)? + close.len())).max()
}

/// Returns the tags that a template names instead of `<think>`.
pub(crate) fn tags_in(template: &str) -> Option<Tags> {
    let mut others = TAGS.into_iter().filter(|tags| tags.open != OPEN);
    others.find(|tags| !template.contains(OPEN) && template.contains(tags.open))
}

/// Returns the end of an empty thought at the beginning of a turn; 0 without one. A template may write the close alone
/// (`DeepSeek` V3.2).
pub(crate) fn end_of_empty(turn: &str, tags: Tags) -> usize {
    let inside = turn.trim_start();
    let inside = inside.strip_prefix(tags.open).map_or(inside, str::trim_start);
    inside.strip_prefix(tags.close).map_or(0, |after| turn.len() - after.len())
}

/// The treatment of thinking in past turns, the same in training and in serving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Thinking {
    /// Thinking stays in context, and conversations are only appended to.
    #[default]
    Keep,
    /// As in the model's template; if the template strips thinking, the conversation forks.
    Follow,
}

/// Returns whether a message is a query: user text that is not a tool's answer.
pub(crate) fn is_query(message: &Message) -> bool {
    let text = &message.content;
    let is_answer = text.starts_with("<tool_response>") && text.ends_with("</tool_response>");
    message.role == Role::User && !is_answer
}

/// Returns the index of the last query, or of the last message without a query, as in Qwen 3's template.
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

/// Returns whether a turn has an empty thinking block.
pub(crate) fn is_empty_block(turn: &str) -> bool {
    let thoughts = turn.split_once(CLOSE).map(|(before, _)| before.rsplit(OPEN).next());
    thoughts.flatten().is_some_and(|thoughts| thoughts.trim().is_empty())
}

/// Splits an assistant message into its thoughts, if any, and the rest of its text. Thoughts may be in the text.
pub(crate) fn split(message: &Message) -> (Option<&str>, &str) {
    let text = message.content.as_str();
    if let Some(reasoning) = message.reasoning.as_deref() {
        // A template tests for thoughts before it trims: a lone newline makes an empty block.
        return ((!reasoning.is_empty()).then(|| reasoning.trim_matches('\n')), text);
    }
    let Some((before, _)) = text.split_once(CLOSE) else { return (None, text) };
    let thoughts = before.rsplit(OPEN).next().unwrap_or_default().trim_matches('\n');
    let rest = text.rsplit(CLOSE).next().unwrap_or_default().trim_start_matches('\n');
    ((!thoughts.is_empty()).then_some(thoughts), rest)
}

/// Writes a sampled turn without its thinking. The tokens after the thinking stay as they were sampled.
pub(crate) fn strip(tokenizer: &Tokenizer, turn: &[TokenId], canvas: &mut Canvas<'_>) {
    match tokenizer.decode(turn).rfind(CLOSE) {
        Some(at) => keep_from(tokenizer, turn, at + CLOSE.len(), canvas),
        None => canvas.verbatim(turn),
    }
}

/// Writes the tokens of a sampled turn from this byte of its text on, as they were sampled. Leading tokens of newlines
/// are dropped, but a newline that shares a token with other text stays. Only a token that the byte divides is encoded
/// again.
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
        // The token is divided after blanks: it stays.
        return canvas.verbatim(&turn[n - 1..]);
    }
    if head.len() > from {
        // An incomplete character has at most three more tokens.
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
