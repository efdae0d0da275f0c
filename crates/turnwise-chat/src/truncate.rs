use std::borrow::Cow;

use crate::{Tokenizer, clean};

/// Text with more bytes than this per allowed token is truncated before it is encoded, so that a long text costs no
/// more than what is kept of it. English has four bytes per token, long runs of blanks up to 128.
const MAX_BYTES_PER_TOKEN: usize = 32;

/// Returns the part of a message's text that the model sees: cleaned, and at most `max_tokens` tokens; the whole text
/// for `usize::MAX`.
pub(crate) fn heard(tokenizer: &Tokenizer, text: &str, max_tokens: usize) -> String {
    let cleaned = clean(text);
    if max_tokens == usize::MAX {
        return cleaned.into_owned();
    }
    middle_truncate(tokenizer, &cleaned, max_tokens).into_owned()
}

/// Returns whether [`heard`] truncates a text.
pub(crate) fn is_heard_in_part(tokenizer: &Tokenizer, text: &str, max_tokens: usize) -> bool {
    is_longer(tokenizer, &clean(text), max_tokens)
}

/// Truncates the middle of a text: returns the text, or its start and end with `[... N bytes omitted ...]` between, so
/// that it has at most `max_tokens` tokens.
///
/// A limit too small for the mark gives the mark alone.
pub(crate) fn middle_truncate<'a>(
    tokenizer: &Tokenizer,
    text: &'a str,
    max_tokens: usize,
) -> Cow<'a, str> {
    if !is_longer(tokenizer, text, max_tokens) {
        return Cow::Borrowed(text);
    }
    let max_bytes = max_tokens.saturating_mul(MAX_BYTES_PER_TOKEN);
    let side = if text.len() <= max_bytes { text.len() } else { max_bytes / 2 };
    let head = Side::head(tokenizer, text, side);
    let tail = Side::tail(tokenizer, text, side);
    let mark_tokens = tokenizer.encode_plain(&mark(text.len())).len();
    let mut keep = max_tokens.saturating_sub(mark_tokens);
    loop {
        let start = head.cut(keep - keep / 2);
        // Both ends may include the same character, whose tokens they share.
        let end = tail.cut(keep / 2).max(start);
        let short = format!("{}{}{}", &text[..start], mark(end - start), &text[end..]);
        let n_tokens = tokenizer.encode_plain(&short).len();
        if n_tokens <= max_tokens || keep == 0 {
            return Cow::Owned(short);
        }
        keep = keep.saturating_sub(n_tokens - max_tokens);
    }
}

/// Returns whether a text has more than `max_tokens` tokens, or so many bytes that it counts as if.
pub(crate) fn is_longer(tokenizer: &Tokenizer, text: &str, max_tokens: usize) -> bool {
    let max_bytes = max_tokens.saturating_mul(MAX_BYTES_PER_TOKEN);
    text.len() > max_bytes || tokenizer.encode_plain(text).len() > max_tokens
}

fn mark(n_bytes: usize) -> String {
    format!("[... {n_bytes} bytes omitted ...]")
}

/// The token boundaries at one end of the text, in bytes of the whole text.
struct Side {
    cuts: Vec<usize>,
    outermost: usize,
}

impl Side {
    fn head(tokenizer: &Tokenizer, text: &str, n_bytes: usize) -> Self {
        let part = &text[..text.floor_char_boundary(n_bytes)];
        let cuts = tokenizer.pieces(part, &[]).iter().map(|piece| piece.end).collect();
        Self { cuts, outermost: 0 }
    }

    fn tail(tokenizer: &Tokenizer, text: &str, n_bytes: usize) -> Self {
        let base = text.ceil_char_boundary(text.len() - n_bytes);
        let pieces = tokenizer.pieces(&text[base..], &[]);
        let cuts = pieces.iter().rev().map(|piece| base + piece.start).collect();
        Self { cuts, outermost: text.len() }
    }

    /// Returns the boundary after the outermost `n_tokens` tokens.
    fn cut(&self, n_tokens: usize) -> usize {
        let last = n_tokens.min(self.cuts.len()).checked_sub(1);
        last.map_or(self.outermost, |last| self.cuts[last])
    }
}
