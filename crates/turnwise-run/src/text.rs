//! Cleaning of foreign text for a terminal.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Returns a text as one line without control characters: an escape sequence in a sample must not reach the terminal.
///
/// Line breaks and tabs become spaces. Characters that change the direction of writing are removed too, because they
/// would reorder the text after them.
#[must_use]
pub fn one_line(text: &str) -> String {
    let spaced = text.chars().map(|c| if matches!(c, '\n' | '\r' | '\t') { ' ' } else { c });
    spaced.filter(|c| is_harmless(*c)).collect::<String>().trim().to_owned()
}

/// Returns the lines of a text, without control characters.
#[must_use]
pub fn lines(text: &str) -> Vec<String> {
    text.lines().map(|line| line.chars().filter(|c| is_harmless(*c)).collect()).collect()
}

/// Makes any message fit for a terminal or a log: removes control characters, and shortens it to 40 lines of at most
/// 600 characters. Counts what it leaves out.
pub fn presentable(text: &str) -> String {
    const LINES: usize = 40;
    let mut kept: Vec<String> = text.split('\n').take(LINES).map(presentable_line).collect();
    let n = text.split('\n').count();
    if n > LINES {
        kept.push(format!("[{} more lines]", n - LINES));
    }
    kept.join("\n")
}

/// Removes control characters from a line, and the middle of a long line.
fn presentable_line(line: &str) -> String {
    const HEAD: usize = 400;
    const TAIL: usize = 150;
    let clean: Vec<char> =
        line.chars().map(|c| if c == '\t' { ' ' } else { c }).filter(|c| is_harmless(*c)).collect();
    let n = clean.len();
    if n <= HEAD + TAIL + 50 {
        return clean.into_iter().collect();
    }
    let (head, tail) = (&clean[..HEAD], &clean[n - TAIL..]);
    let text = |chars: &[char]| chars.iter().collect::<String>();
    format!("{} [… {} characters …] {}", text(head), n - HEAD - TAIL, text(tail))
}

/// Returns the number of columns that a text takes on a terminal: two for a wide character, none for a combining one.
#[must_use]
pub fn columns(text: &str) -> usize {
    text.width()
}

/// Cuts a text to at most `width` columns of a terminal; `…` stands for the rest.
#[must_use]
pub fn fit(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut taken = 0;
    for character in text.chars() {
        taken += character.width().unwrap_or(0);
        if taken >= width {
            break;
        }
        kept.push(character);
    }
    if width == 0 { kept } else { kept + "…" }
}

/// Breaks a line into parts of at most `width` columns, at spaces where possible. An empty line is one empty part.
///
/// ```
/// use turnwise_run::text::wrap;
///
/// assert_eq!(wrap("find the number", 8), ["find the", "number"]);
/// assert_eq!(wrap("0123456789", 4), ["0123", "4567", "89"]);
/// ```
#[must_use]
pub fn wrap(line: &str, width: usize) -> Vec<String> {
    let (mut parts, mut part, mut taken) = (Vec::new(), String::new(), 0);
    for character in line.chars() {
        let wide = character.width().unwrap_or(0);
        if taken + wide > width && taken > 0 {
            // A word that began on this part moves to the next one, unless it fills the part.
            let rest = match part.rfind(' ').filter(|_| character != ' ') {
                Some(space) => part.split_off(space),
                None => String::new(),
            };
            parts.push(part.trim_end().to_owned());
            rest.trim_start().clone_into(&mut part);
            taken = columns(&part);
        }
        if character != ' ' || taken > 0 || parts.is_empty() {
            part.push(character);
            taken += wide;
        }
    }
    if !part.trim_end().is_empty() || parts.is_empty() {
        parts.push(part.trim_end().to_owned());
    }
    parts
}

/// Formats a duration, as in `0:29`, or `1:02:03` from an hour on.
#[must_use]
pub fn clock(seconds: f64) -> String {
    // The cast saturates, far beyond the duration of any run.
    #[expect(clippy::cast_sign_loss, reason = "a remaining time is not negative")]
    let seconds = seconds.round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours == 0 {
        format!("{minutes}:{seconds:02}")
    } else {
        format!("{hours}:{minutes:02}:{seconds:02}")
    }
}

fn is_harmless(c: char) -> bool {
    let turns_direction =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    // Line and paragraph separators are not control characters, but break lines.
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
    fn messages_are_clean_and_short() {
        assert_eq!(presentable("a\u{1b}[31mb\tc\nd\u{7}"), "a[31mb c\nd");
        let long = presentable(&"x".repeat(100_000));
        assert!(long.chars().count() < 600 && long.contains("[… 99450 characters …]"), "{long}");
        let many = presentable(&"line\n".repeat(18_528));
        assert!(many.ends_with("[18489 more lines]"), "{many}");
    }

    #[test]
    fn what_does_not_fit_is_shortened() {
        assert_eq!(fit("higher", 6), "higher");
        assert_eq!(fit("größer", 4), "grö…");
        assert_eq!(fit("higher", 1), "…");
        assert_eq!(fit("higher", 0), "");
        assert_eq!(fit("数字は", 6), "数字は");
        assert_eq!(fit("数字は", 5), "数字…");
        assert_eq!(fit("数字は", 4), "数…");
        assert_eq!(columns("e\u{301}🎲"), 3);
    }

    #[test]
    fn wrapped_lines_fit_and_keep_their_words() {
        let text = "  The order 17 ships on Monday, unless 数字は違います and e\u{301}.";
        for width in 2..60 {
            let parts = wrap(text, width);
            assert!(parts.iter().all(|part| columns(part) <= width), "{width}: {parts:?}");
            let letters = |text: &str| text.chars().filter(|c| *c != ' ').collect::<String>();
            assert_eq!(letters(&parts.concat()), letters(text), "{width}");
        }
        assert_eq!(wrap("", 8), [""]);
        assert_eq!(wrap("  indented", 20), ["  indented"]);
    }

    #[test]
    fn times_are_written_as_on_a_clock() {
        assert_eq!(clock(0.4), "0:00");
        assert_eq!(clock(89.6), "1:30");
        assert_eq!(clock(3723.0), "1:02:03");
    }
}
