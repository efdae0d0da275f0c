use std::borrow::Cow;

/// The most bytes to search for the end of a terminal string (a window title, a link). Without a bound, a text full of
/// openings would take quadratic time.
const MAX_TERMINAL_STRING_BYTES: usize = 4096;

/// Removes terminal escapes and control characters; newlines and tabs stay.
///
/// Tools often print for a terminal. Colours do not help a model, and with a carriage return a person sees other text
/// than the model reads. The recorded message keeps the raw text.
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

/// Skips parameters, intermediates and one final character.
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

/// Skips a terminal string. It must end on its own line, so that an opening does not swallow what follows.
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
