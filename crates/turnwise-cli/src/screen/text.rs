//! Text that others wrote, made fit for a terminal.

/// One line without control characters: an escape sequence in a sample must not reach the terminal.
///
/// Line breaks and tabs become spaces. Characters that turn the direction of writing go too, because they would reorder
/// what is printed after them.
pub(crate) fn one_line(text: &str) -> String {
    let spaced = text.chars().map(|c| if matches!(c, '\n' | '\r' | '\t') { ' ' } else { c });
    spaced.filter(|c| is_harmless(*c)).collect::<String>().trim().to_owned()
}

/// The lines of a text, without control characters.
pub(crate) fn lines(text: &str) -> Vec<String> {
    text.lines().map(|line| line.chars().filter(|c| is_harmless(*c)).collect()).collect()
}

/// At most `width` characters; what is missing is shown by `…`.
pub(crate) fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    if width == 0 { kept } else { kept + "…" }
}

fn is_harmless(c: char) -> bool {
    let turns_direction =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    // Line and paragraph separators are no control characters, but break lines.
    !c.is_control() && !turns_direction && !matches!(c, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_lose_their_escape() {
        assert_eq!(one_line("a\u{1b}[31mb\u{7}\u{202e}c\u{9b}2J"), "a[31mbc2J");
        assert_eq!(lines("a\u{1b}[2J\nb\r\n\u{8}c"), ["a[2J", "b", "c"]);
    }

    #[test]
    fn line_breaks_become_spaces() {
        assert_eq!(one_line("\n first\n\tsecond\r\n"), "first  second");
    }

    #[test]
    fn what_does_not_fit_is_shortened() {
        assert_eq!(fit("higher", 6), "higher");
        assert_eq!(fit("größer", 4), "grö…");
        assert_eq!(fit("higher", 1), "…");
        assert_eq!(fit("higher", 0), "");
    }
}
