/// Parses a text of decimal digits, with an optional minus sign. A number that exceeds 64 bits saturates.
pub(crate) fn number(text: &str) -> Option<i64> {
    let text = text.trim();
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let size = digits.parse().unwrap_or(i64::MAX);
    Some(if is_negative { -size } else { size })
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn a_number_is_decimal_digits_and_nothing_else() {
        assert_eq!(number(" 09\n"), Some(9));
        assert_eq!(number("-3"), Some(-3));
        assert_eq!(number(&"9".repeat(1000)), Some(i64::MAX));
        for text in ["", "-", "+5", "9.0", "9.", "0x10", "1e3", "nine", "7 + 2", "\u{ff19}"] {
            assert_eq!(number(text), None, "{text:?}");
        }
    }
}
