use std::borrow::Cow;

/// How far the end of a terminal string (a window title, a link) is looked for. A bound, so that a text full of openings
/// does not cost the square of its length.
const MAX_TERMINAL_STRING_BYTES: usize = 4096;

/// The text without terminal escapes and control characters; newlines and tabs stay.
///
/// What a tool prints is meant for a terminal. A model gains nothing from colours, and a carriage return shows a person
/// other text than the model reads. The raw text stays in the message that is recorded.
///
/// ```
/// assert_eq!(turnwise_chat::clean("\u{1b}[31mred\u{1b}[0m\r\n"), "red\n");
/// ```
#[must_use]
pub fn clean(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_kept) {
        return Cow::Borrowed(text);
    }
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = match c {
            '\u{1b}' => after_escape(after),
            '\u{9b}' => after_control_sequence(after),
            _ => after,
        };
        if is_kept(c) {
            kept.push(c);
        }
    }
    Cow::Owned(kept)
}

fn is_kept(c: char) -> bool {
    matches!(c, '\n' | '\t') || !c.is_control()
}

fn after_escape(text: &str) -> &str {
    match text.chars().next() {
        Some('[') => after_control_sequence(&text[1..]),
        Some(']' | 'P' | 'X' | '^' | '_') => after_terminal_string(&text[1..]),
        _ => after_final(text.trim_start_matches(is_intermediate), '0'..='~'),
    }
}

/// Parameters, intermediates, one final character.
fn after_control_sequence(text: &str) -> &str {
    let text = text.trim_start_matches(|c| ('0'..='?').contains(&c));
    after_final(text.trim_start_matches(is_intermediate), '@'..='~')
}

fn is_intermediate(c: char) -> bool {
    (' '..='/').contains(&c)
}

fn after_final(text: &str, finals: std::ops::RangeInclusive<char>) -> &str {
    match text.chars().next() {
        Some(c) if finals.contains(&c) => &text[c.len_utf8()..],
        _ => text,
    }
}

/// A string ends on its own line or was none: an opening must not swallow what follows.
fn after_terminal_string(text: &str) -> &str {
    let window = &text[..text.floor_char_boundary(MAX_TERMINAL_STRING_BYTES)];
    let Some(at) = window.find(['\u{7}', '\u{9c}', '\u{1b}', '\n']) else { return text };
    let end = &text[at..];
    let terminators = ["\u{7}", "\u{9c}", "\u{1b}\\"];
    terminators.iter().find_map(|terminator| end.strip_prefix(terminator)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn escapes_go_and_their_text_stays() {
        assert_eq!(clean("plain\ttext\n"), "plain\ttext\n");
        assert_eq!(clean("a\u{1b}[1;31mb\u{1b}[0mc"), "abc");
        assert_eq!(clean("a\u{9b}1mb"), "ab");
        assert_eq!(clean("a\u{1b}]0;title\u{7}b"), "ab");
        assert_eq!(clean("a\u{1b}]8;;http://x\u{1b}\\link"), "alink");
        assert_eq!(clean("a\u{1b}(Bb\u{1b}cd"), "abd");
        assert_eq!(clean("a\0\u{8}\u{7f}\u{85}b\r\n"), "ab\n");
    }

    #[test]
    fn an_unfinished_escape_hides_nothing() {
        assert_eq!(clean("a\u{1b}"), "a");
        assert_eq!(clean("a\u{1b}[12"), "a");
        assert_eq!(clean("a\u{1b}]kept\nkept"), "akept\nkept");
        assert_eq!(clean("a\u{1b}[é"), "aé");
    }

    #[test]
    fn a_megabyte_of_openings_is_cheap() {
        assert_eq!(clean(&"\u{1b}]".repeat(500_000)), "");
    }
}
