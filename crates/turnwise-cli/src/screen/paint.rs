//! Colours of characters. Text has the same meaning without colours.

/// Colours a line, if colours are enabled.
pub(super) fn painted(line: &str, color: bool) -> String {
    if !color {
        return line.to_owned();
    }
    let mut text = String::with_capacity(2 * line.len());
    let mut current = "";
    for c in line.chars() {
        // A space looks the same in all colours, and does not change the current one.
        let next = if c == ' ' { current } else { code(c) };
        if next != current {
            text.push_str(if next.is_empty() { "\x1b[0m" } else { next });
            current = next;
        }
        text.push(c);
    }
    if !current.is_empty() {
        text.push_str("\x1b[0m");
    }
    text
}

/// Returns the escape sequence of a character's colour, empty for the terminal's own. Each sequence first resets the
/// one before.
fn code(c: char) -> &'static str {
    match c {
        '▲' | '✓' => "\x1b[0;32m",
        '▼' | '✗' => "\x1b[0;31m",
        '⚠' => "\x1b[0;33m",
        '\u{2800}'..='\u{28ff}' | '\u{2588}'..='\u{258f}' => "\x1b[0;36m",
        '\u{2500}'..='\u{257f}' | '·' => "\x1b[0;2m",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_color_changes_nothing() {
        assert_eq!(painted("▲ 0.5 ──", false), "▲ 0.5 ──");
    }

    #[test]
    fn a_run_of_one_color_has_one_sequence() {
        assert_eq!(painted("a ██▎·· b", true), "a \x1b[0;36m██▎\x1b[0;2m·· \x1b[0mb");
        assert_eq!(painted("up ▲", true), "up \x1b[0;32m▲\x1b[0m");
    }
}
