//! Added tokens of a tokenizer: control tokens, and tokens of plain text.

use std::collections::{HashMap, HashSet};

use tokenizers::AddedToken;
use turnwise_trajectory::TokenId;

/// HTML elements that vocabularies have as added tokens of text (Gemma). `s` is missing here, because `</s>` ends texts
/// in other vocabularies.
const HTML: [&str; 34] = [
    "a",
    "b",
    "bbox",
    "blockquote",
    "body",
    "caption",
    "code",
    "div",
    "em",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "html",
    "i",
    "img",
    "li",
    "ol",
    "p",
    "pre",
    "span",
    "strong",
    "sub",
    "sup",
    "table",
    "tbody",
    "td",
    "tfoot",
    "th",
    "thead",
    "tr",
    "u",
];

/// The added tokens, by their texts.
///
/// A *control token* is an added token that plain text never becomes. All added tokens are control tokens, except those
/// that only abbreviate text: a token of one character, and, unless it is special, one of blanks or an HTML tag.
pub(crate) struct AddedTokens {
    controls: HashMap<String, TokenId>,
    textual: HashMap<String, TokenId>,
    ids: HashSet<TokenId>,
    /// Tokens that absorb the blanks before them, and tokens that absorb the blanks after them.
    lstrip: HashSet<TokenId>,
    rstrip: HashSet<TokenId>,
    /// The lengths in bytes of all texts, longest first.
    lengths: Vec<usize>,
    /// Whether a token starts with this byte.
    is_first: [bool; 256],
    /// Proper prefixes and suffixes of the control tokens' texts.
    heads: HashSet<String>,
    tails: HashSet<String>,
}

/// An added token found in a text.
#[derive(Clone, Copy)]
pub(crate) struct Found<'a> {
    pub(crate) text: &'a str,
    pub(crate) id: TokenId,
}

impl AddedTokens {
    pub(crate) fn new(tokens: impl IntoIterator<Item = (TokenId, AddedToken)>) -> Self {
        let tokens: Vec<_> =
            tokens.into_iter().filter(|(_, token)| !token.content.is_empty()).collect();
        let has_html = tokens.iter().any(|(_, token)| token.content == "<table>");
        let mut added = Self {
            controls: HashMap::new(),
            textual: HashMap::new(),
            ids: HashSet::new(),
            lstrip: flagged(&tokens, |token| token.lstrip),
            rstrip: flagged(&tokens, |token| token.rstrip),
            lengths: tokens.iter().map(|(_, token)| token.content.len()).collect(),
            is_first: [false; 256],
            heads: HashSet::new(),
            tails: HashSet::new(),
        };
        added.lengths.sort_unstable_by(|a, b| b.cmp(a));
        added.lengths.dedup();
        for (id, token) in tokens {
            added.is_first[usize::from(token.content.as_bytes()[0])] = true;
            if is_text(&token, has_html) {
                added.textual.insert(token.content, id);
                continue;
            }
            for (at, _) in token.content.char_indices().skip(1) {
                added.heads.insert(token.content[..at].to_owned());
                added.tails.insert(token.content[at..].to_owned());
            }
            added.ids.insert(id);
            added.controls.insert(token.content, id);
        }
        added
    }

    pub(crate) fn is_control(&self, id: TokenId) -> bool {
        self.ids.contains(&id)
    }

    /// Returns the blanks that a token absorbs: at the end of `before` and at the start of `behind`.
    pub(crate) fn taken(&self, id: TokenId, before: &str, behind: &str) -> (usize, usize) {
        let left = before.len() - before.trim_end().len();
        let right = behind.len() - behind.trim_start().len();
        let taken = |tokens: &HashSet<TokenId>, n: usize| if tokens.contains(&id) { n } else { 0 };
        (taken(&self.lstrip, left), taken(&self.rstrip, right))
    }

    /// Returns the longest added token at this place of the text whose end and kind `allows` accepts.
    pub(crate) fn at<'a>(
        &'a self,
        text: &'a str,
        at: usize,
        allows: impl Fn(usize, bool) -> bool,
    ) -> Option<Found<'a>> {
        if !self.is_first[usize::from(*text.as_bytes().get(at)?)] {
            return None;
        }
        self.lengths.iter().find_map(|length| {
            let part = text.get(at..at + length)?;
            let control = self.controls.get(part).map(|id| (*id, true));
            let (id, is_control) =
                control.or_else(|| self.textual.get(part).map(|id| (*id, false)))?;
            allows(at + length, is_control).then_some(Found { text: part, id })
        })
    }

    /// Returns the control token at this place of the text.
    pub(crate) fn control_at<'a>(&'a self, text: &'a str, at: usize) -> Option<Found<'a>> {
        self.at(text, at, |_, is_control| is_control)
    }

    /// Returns whether the text starts with the end of a control token's name.
    pub(crate) fn begins_inside(&self, text: &str) -> bool {
        self.lengths()
            .any(|length| text.get(..length).is_some_and(|part| self.tails.contains(part)))
    }

    /// Returns whether the text ends with the start of a control token's name.
    pub(crate) fn ends_inside(&self, text: &str) -> bool {
        self.lengths().any(|length| {
            let from = text.len().checked_sub(length);
            from.and_then(|from| text.get(from..)).is_some_and(|part| self.heads.contains(part))
        })
    }

    fn lengths(&self) -> impl Iterator<Item = usize> {
        1..self.lengths.first().copied().unwrap_or(0)
    }
}

fn flagged(
    tokens: &[(TokenId, AddedToken)],
    is_flagged: impl Fn(&AddedToken) -> bool,
) -> HashSet<TokenId> {
    tokens.iter().filter(|(_, token)| is_flagged(token)).map(|(id, _)| *id).collect()
}

fn is_text(token: &AddedToken, has_html: bool) -> bool {
    let text = token.content.as_str();
    if text.chars().count() < 2 {
        return true;
    }
    let is_blank = text.chars().all(|c| c.is_whitespace() || c == '\u{2581}');
    let tag = text.strip_prefix('<').and_then(|text| text.strip_suffix('>'));
    let name = tag.map(|tag| tag.strip_prefix('/').unwrap_or(tag));
    let is_html =
        has_html && name.is_some_and(|name| HTML.contains(&name) || name == "s" || name == "ul");
    !token.special && (is_blank || is_html)
}
