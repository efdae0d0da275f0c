//! Filters of Jinja2 that the template engine lacks, and its way to print numbers.

use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, escape_formatter};
use minijinja_contrib::filters::{filesizeformat, striptags};

pub(super) fn add(environment: &mut Environment<'_>) {
    environment.add_filter("wordcount", word_count);
    environment.add_filter("striptags", striptags);
    environment.add_filter("filesizeformat", filesizeformat);
    environment.set_formatter(|output, state, value| {
        let float = value.kind() == ValueKind::Number && !value.is_integer();
        match f64::try_from(value.clone()).ok().filter(|_| float) {
            Some(number) => escape_formatter(output, state, &Value::from(python_float(number))),
            None => escape_formatter(output, state, value),
        }
    });
}

/// Counts runs of letters, digits and `_`.
#[expect(clippy::needless_pass_by_value, reason = "the form of a filter")]
fn word_count(text: String) -> usize {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|word| !word.is_empty()).count()
}

/// Prints a number as Python does: the exponent has a sign and two digits.
fn python_float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    let text = format!("{number:?}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            format!("{}e{sign}{exponent:0>2}", digits.trim_end_matches(".0"))
        }
        None => text,
    }
}
