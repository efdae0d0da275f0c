/// The answer in a text, as people write it: "I guess 16.", "The answer is **42**", `\boxed{42}`.
///
/// A model that was not trained on an environment answers in sentences. An environment that reads its answers with this
/// type accepts the sentence and the bare answer alike.
///
/// ```
/// use turnwise_environment::Answer;
///
/// assert_eq!(Answer::of("I guess 16.").integer(), Some(16));
/// assert_eq!(Answer::of("12 + 30 = 42, so the answer is **42**.").integer(), Some(42));
/// assert_eq!(Answer::of("It lies between 1 and 20, so my guess is 10.").integer(), Some(10));
/// assert_eq!(Answer::of(r"Hence $x = \boxed{-2.5}$.").number(), Some(-2.5));
/// assert_eq!(Answer::of("Paris.").text(), "Paris");
/// assert_eq!(Answer::of("I do not know").integer(), None);
/// ```
///
/// The answer is looked for, in this order, in
///
/// 1. the last `\boxed{…}` or `<answer>…</answer>`,
/// 2. what follows the last `####` (GSM8K), or the last cue such as "answer is", "answer:", "I guess" or "=",
/// 3. the whole text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    part: &'a str,
    /// Whether the part is what a mark or a cue points at, and not the whole text.
    is_marked: bool,
}

/// Words before an answer, in lower case. The last one in a text counts.
const CUES: [&str; 11] = [
    "answer is",
    "answer:",
    "guess is",
    "guess:",
    "result is",
    "result:",
    "i guess",
    "i choose",
    "i pick",
    "i say",
    "=",
];

impl<'a> Answer<'a> {
    /// Finds the part of a text that has the answer.
    #[must_use]
    pub fn of(text: &'a str) -> Self {
        let marked = boxed(text).or_else(|| tagged(text)).or_else(|| behind(text, "####"));
        let marked = marked.or_else(|| cued(text));
        Self { part: marked.unwrap_or(text).trim(), is_marked: marked.is_some() }
    }

    /// Returns the answer as text: its first line, without emphasis, quotes, and punctuation at the end.
    #[must_use]
    pub fn text(self) -> &'a str {
        let line = self.part.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let is_wrapping =
            |char: char| matches!(char, '*' | '_' | '`' | '"' | '\'' | '$' | ' ' | ':');
        line.trim_matches(is_wrapping)
            .trim_end_matches(['.', '!', ',', ';'])
            .trim_matches(is_wrapping)
    }

    /// Returns the answer as a whole number. One that exceeds 64 bits saturates; one with a fraction is none.
    #[must_use]
    pub fn integer(self) -> Option<i64> {
        let number = self.found()?;
        let (whole, fraction) = number.digits.split_once('.').unwrap_or((&number.digits, ""));
        if fraction.bytes().any(|digit| digit != b'0') {
            return None;
        }
        let size: i64 = whole.parse().unwrap_or(i64::MAX);
        Some(if number.is_negative { -size } else { size })
    }

    /// Returns the answer as a number.
    #[must_use]
    pub fn number(self) -> Option<f64> {
        let number = self.found()?;
        let size: f64 = number.digits.parse().ok()?;
        Some(if number.is_negative { -size } else { size })
    }

    /// Returns whether there is no doubt about the number: it stands behind a mark or a cue, or it is the only one.
    #[must_use]
    pub fn is_clear(self) -> bool {
        let n_numbers = numbers(self.part).take(2).count();
        if self.is_marked { n_numbers > 0 } else { n_numbers == 1 }
    }

    /// Returns the number that counts: the first one behind a cue or within a mark, the last one of a whole text.
    fn found(self) -> Option<Digits> {
        let mut all = numbers(self.part);
        if self.is_marked { all.next() } else { all.last() }
    }
}

/// A number as it was written, without the separators of thousands.
struct Digits {
    is_negative: bool,
    digits: String,
}

/// Returns the text within the last `\boxed{…}`, whose braces match.
fn boxed(text: &str) -> Option<&str> {
    let inside = behind(text, r"\boxed{")?;
    let mut depth = 1_usize;
    let end = inside.char_indices().find_map(|(at, char)| {
        match char {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        (depth == 0).then_some(at)
    });
    end.map(|end| &inside[..end])
}

/// Returns the text within the last `<answer>…</answer>`; the end may be missing.
fn tagged(text: &str) -> Option<&str> {
    let inside = behind(text, "<answer>")?;
    Some(inside.split("</answer>").next().unwrap_or(inside))
}

fn behind<'a>(text: &'a str, mark: &str) -> Option<&'a str> {
    text.rfind(mark).map(|at| &text[at + mark.len()..])
}

/// Returns the text behind the last cue that has any.
fn cued(text: &str) -> Option<&str> {
    // Lower case of ASCII letters alone, so that places in both texts are the same.
    let lower = text.to_ascii_lowercase();
    let places =
        CUES.iter().flat_map(|cue| lower.rmatch_indices(cue).map(|(at, _)| at + cue.len()));
    let has_more = |end: &usize| text[*end..].chars().any(char::is_alphanumeric);
    places.filter(has_more).max().map(|end| &text[end..])
}

/// Iterates over the numbers in a text. Digits in a word, such as `x10` or `1e3`, are none.
fn numbers(text: &str) -> impl Iterator<Item = Digits> {
    let mut rest = 0;
    std::iter::from_fn(move || {
        loop {
            let start = rest + text[rest..].find(|char: char| char.is_ascii_digit())?;
            let end = end_of(text, start);
            rest = end;
            let before = text[..start].chars().next_back();
            let after = text[end..].chars().next();
            let is_word =
                |char: Option<char>| char.is_some_and(|char| char.is_alphabetic() || char == '_');
            if is_word(before) || is_word(after) {
                // The rest of the word is no number either.
                rest += text[rest..]
                    .find(|char: char| !char.is_alphanumeric())
                    .unwrap_or(text.len() - rest);
                continue;
            }
            let is_negative = before == Some('-') && is_sign(&text[..start - 1]);
            return Some(Digits { is_negative, digits: text[start..end].replace(',', "") });
        }
    })
}

/// Returns whether a minus stands for a sign: not behind a number or a word, where it is a range or a difference.
fn is_sign(before: &str) -> bool {
    !before.chars().next_back().is_some_and(|char| char.is_alphanumeric() || char == ')')
}

/// Returns the end of the number that begins at `start`: digits, groups of three behind commas, and a fraction.
fn end_of(text: &str, start: usize) -> usize {
    let digits = |from: usize| text[from..].bytes().take_while(u8::is_ascii_digit).count();
    let mut end = start + digits(start);
    while end - start > 0 && text[end..].starts_with(',') && digits(end + 1) == 3 {
        end += 4;
    }
    if text[end..].starts_with('.') && digits(end + 1) > 0 {
        end += 1 + digits(end + 1);
    }
    end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn whole_numbers_are_read_as_people_write_them() {
        let cases = [
            ("16", 16),
            (" 016\n", 16),
            ("-3", -3),
            ("+5", 5),
            ("16.", 16),
            ("I guess 16.", 16),
            ("My guess is 16, because it lies between 10 and 20.", 16),
            ("between 10 and 20, so 15", 15),
            ("The answer is **42**", 42),
            ("The answer is: 42.0", 42),
            ("**Answer:** 7", 7),
            ("Answer: $1,234$", 1234),
            (r"\[ \boxed{12} \] or 13", 12),
            (r"\boxed{\text{7}}", 7),
            ("#### 72", 72),
            ("<answer>5</answer> and 6", 5),
            ("2 + 3 = 5", 5),
            ("higher: 11-20", 20),
            ("answer is 3. My answer is 4.", 4),
            ("Is it 10? I guess", 10),
            ("(17)", 17),
            ("№ 8", 8),
        ];
        for (text, number) in cases {
            assert_eq!(Answer::of(text).integer(), Some(number), "{text:?}");
        }
        assert_eq!(Answer::of(&"9".repeat(1000)).integer(), Some(i64::MAX));
    }

    #[test]
    fn what_is_no_whole_number_is_none() {
        let others = ["", "-", "0x10", "1e3", "sixteen", "1.5", "x10", "\u{ff11}", "v2", "I guess"];
        for text in others {
            assert_eq!(Answer::of(text).integer(), None, "{text:?}");
        }
    }

    #[test]
    fn one_number_or_a_marked_one_is_clear() {
        for text in ["16", "It is 16.", "7 + 5 = 12", "The answer is 3 and not 4."] {
            assert!(Answer::of(text).is_clear(), "{text:?}");
        }
        for text in ["", "First I add 7 + 5", "no idea", "between 1 and 9"] {
            assert!(!Answer::of(text).is_clear(), "{text:?}");
        }
    }

    #[test]
    fn texts_lose_their_wrapping() {
        let cases = [
            ("Paris.", "Paris"),
            ("The answer is **Paris**!", "Paris"),
            ("Answer: \"north\"", "north"),
            ("\n  `left`\nbecause …", "left"),
            (r"\boxed{x^{2}}", "x^{2}"),
            ("", ""),
        ];
        for (text, answer) in cases {
            assert_eq!(Answer::of(text).text(), answer, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_number_is_found_in_any_sentence(number: i32, before in "[a-z ,]{0,20}", after in "[.!]?( [a-z ]{0,20})?") {
            let text = format!("{before} {number}{after}");
            prop_assert_eq!(Answer::of(&text).integer(), Some(i64::from(number)));
            let text = format!("3 or 4: the answer is {number}, not 5");
            prop_assert_eq!(Answer::of(&text).integer(), Some(i64::from(number)));
        }

        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let answer = Answer::of(&text);
            let _ = (answer.integer(), answer.number(), answer.text());
        }

        #[test]
        fn no_text_of_marks_panics(text in r"([-,.0-9]|\\boxed\{|\}|answer is|####|<answer>|é){0,30}") {
            let answer = Answer::of(&text);
            let _ = (answer.integer(), answer.number(), answer.text());
        }
    }
}
