//! Python's `+` on text that is marked as safe: the other side's HTML characters are escaped, and the sum is safe.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, State, context};

use super::code::{CodeToken, InfixExpression, Kind, closing, is_keyword, opening, replaced};

/// The filter that takes the place of the operator.
pub(super) const FILTER: &str = "plus";

/// Adds two values; beside a safe text, another text is escaped.
pub(super) fn filter(state: &State, left: Value, right: Value) -> Result<Value, Error> {
    let is_text = |value: &Value| value.kind() == ValueKind::String;
    if is_text(&left) && is_text(&right) {
        let is_safe = left.is_safe() || right.is_safe();
        let written = |value: &Value| match value.as_str().unwrap_or_default() {
            text if is_safe && !value.is_safe() => escaped(text),
            text => text.to_owned(),
        };
        let sum = written(&left) + &written(&right);
        return Ok(if is_safe { Value::from_safe_string(sum) } else { Value::from(sum) });
    }
    state.env().compile_expression("left + right")?.eval(context!(left, right)).map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, error.detail().unwrap_or("cannot add").to_owned())
    })
}

/// Escapes as Python's `markupsafe` does.
fn escaped(text: &str) -> String {
    let mut written = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => written.push_str("&amp;"),
            '<' => written.push_str("&lt;"),
            '>' => written.push_str("&gt;"),
            '\'' => written.push_str("&#39;"),
            '"' => written.push_str("&#34;"),
            c => written.push(c),
        }
    }
    written
}

/// Returns whether a template marks text as safe; in all others `+` is as in the engine.
pub(super) fn is_used_by(template: &str) -> bool {
    template.contains("safe")
}

/// Replaces every sum in the code of a tag by the filter.
pub(super) fn with_filters(code: &str) -> String {
    replaced(code, FILTER, |tokens| {
        let mut places = (0..tokens.len()).filter(|at| tokens[*at].is("+"));
        places.find_map(|at| operands(tokens, at))
    })
}

/// Returns the expression of the `+` at `at`; `None` for a sign. A sum binds weaker than every operator of values, so
/// its left side begins behind a boundary, and its right side ends before one or before the next sum or difference.
fn operands(tokens: &[CodeToken<'_>], at: usize) -> Option<InfixExpression> {
    is_value_end(tokens.get(at.checked_sub(1)?)?).then_some(())?;
    let mut left = at;
    while let Some(before) = left.checked_sub(1) {
        left = match tokens[before].kind {
            Kind::Close => opening(tokens, before)?,
            _ if is_boundary(&tokens[before]) || tokens[before].is_space_control() => break,
            _ => before,
        };
    }
    let mut right = at + 1;
    while let Some(token) = tokens.get(right) {
        let is_next = (token.is("+") || token.is("-")) && is_value_end(&tokens[right - 1]);
        right = match token.kind {
            Kind::Open => closing(tokens, right)? + 1,
            Kind::Close => break,
            _ if is_next || is_boundary(token) => break,
            _ => right + 1,
        };
    }
    (right > at + 1).then_some(InfixExpression { left, at, right })
}

/// Returns whether a value may end with a token, so that a sign behind it is an operator.
fn is_value_end(token: &CodeToken<'_>) -> bool {
    match token.kind {
        Kind::Name => !is_keyword(token.text),
        Kind::Text | Kind::Number | Kind::Close => true,
        Kind::Open | Kind::Operator => false,
    }
}

/// Returns whether no sum reaches beyond a token.
fn is_boundary(token: &CodeToken<'_>) -> bool {
    match token.kind {
        Kind::Name => is_keyword(token.text),
        Kind::Operator => [",", ":", "=", "!", "<", ">"].contains(&token.text),
        Kind::Open => true,
        Kind::Text | Kind::Number | Kind::Close => false,
    }
}
