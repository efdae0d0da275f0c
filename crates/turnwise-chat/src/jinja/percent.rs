//! Python's `%` on text: `'%s-%d' % (name, n)`, which the template engine has as a filter alone.

use minijinja::value::{Tuple, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

use super::code::{CodeToken, InfixExpression, Kind, closing, is_keyword, opening, replaced};

/// The filter that takes the place of the operator.
pub(super) const FILTER: &str = "percent";

/// Formats a text; of numbers, returns the remainder as Python does.
#[expect(clippy::needless_pass_by_value, reason = "the form of a filter")]
pub(super) fn filter(state: &mut State, left: Value, right: Value) -> Result<Value, Error> {
    if left.kind() == ValueKind::String {
        let mut arguments = match right.downcast_object_ref::<Tuple>() {
            Some(tuple) => tuple.iter().cloned().collect(),
            None => vec![right],
        };
        let format = known_conversions(left.as_str().unwrap_or_default(), &mut arguments);
        arguments.insert(0, Value::from(format));
        return state.apply_filter("format", &arguments);
    }
    let wrong = || {
        let message = format!("cannot take {left} % {right}");
        Error::new(ErrorKind::InvalidOperation, message)
    };
    match (i64::try_from(left.clone()), i64::try_from(right.clone())) {
        (Ok(left), Ok(right)) if left.checked_rem(right).is_some() => {
            let rest = left % right;
            let is_other_sign = rest != 0 && (rest < 0) != (right < 0);
            Ok(Value::from(if is_other_sign { rest + right } else { rest }))
        }
        _ => match (f64::try_from(left.clone()), f64::try_from(right.clone())) {
            (Ok(left), Ok(right)) if right != 0.0 => {
                Ok(Value::from(left - right * (left / right).floor()))
            }
            _ => Err(wrong()),
        },
    }
}

/// Replaces the conversions of Python that the engine lacks: `%i` and `%u` are `%d`, and the argument of `%r` becomes its
/// representation.
fn known_conversions(format: &str, arguments: &mut [Value]) -> String {
    let mut known = String::with_capacity(format.len());
    let (mut rest, mut place) = (format, 0);
    while let Some((before, after)) = rest.split_once('%') {
        known.push_str(before);
        known.push('%');
        let key = if after.starts_with('(') { after.find(')').map_or(0, |at| at + 1) } else { 0 };
        let is_option = |c: char| c.is_ascii_digit() || "#-+ .*".contains(c);
        let n_options = after[key..].find(|c| !is_option(c)).unwrap_or(after.len() - key);
        let (options, conversion) = after.split_at(key + n_options);
        known.push_str(options);
        place += options[key..].matches('*').count();
        let Some(letter) = conversion.chars().next() else { return known };
        rest = &conversion[letter.len_utf8()..];
        match letter {
            'i' | 'u' => known.push('d'),
            'r' if key == 0 => {
                known.push('s');
                if let Some(argument) = arguments.get_mut(place) {
                    // A list shows the representations of its items.
                    let list = Value::from(vec![argument.clone()]).to_string();
                    *argument = Value::from(&list[1..list.len() - 1]);
                }
            }
            letter => known.push(letter),
        }
        place += usize::from(letter != '%');
    }
    known.push_str(rest);
    known
}

/// Replaces the operators in the code of a tag by the filter, where their left side may be text.
pub(super) fn with_filters(code: &str) -> String {
    replaced(code, FILTER, |tokens| {
        let mut places = (0..tokens.len()).filter(|at| tokens[*at].is("%"));
        places.find_map(|at| operands(tokens, at))
    })
}

/// Returns the expression of the operator at `at`; `None` if both sides are numbers, or the left side has an operator of the same rank.
fn operands(tokens: &[CodeToken<'_>], at: usize) -> Option<InfixExpression> {
    let left = left_side(tokens, at)?;
    let right = right_side(tokens, at)?;
    let is_literal = left + 1 == at && tokens[left].kind == Kind::Text;
    let is_number = right == at + 2 && tokens[at + 1].kind == Kind::Number;
    let before = left.checked_sub(1).map(|before| tokens[before]);
    let is_bound =
        before.is_some_and(|token| ["*", "/", "//", "%", "**"].iter().any(|op| token.is(op)));
    let is_signed = before.is_some_and(|token| token.is("-"))
        && left
            .checked_sub(2)
            .is_none_or(|at| matches!(tokens[at].kind, Kind::Operator | Kind::Open));
    let is_power = tokens.get(right).is_some_and(|token| token.is("**"));
    if !is_literal && (is_number || is_bound || is_signed) || is_power {
        return None;
    }
    Some(InfixExpression { left, at, right })
}

/// Returns the index of the first token of the expression before an operator: a value, with attributes, items, calls
/// and filters.
fn left_side(tokens: &[CodeToken<'_>], at: usize) -> Option<usize> {
    let mut first = at.checked_sub(1)?;
    loop {
        match tokens[first].kind {
            Kind::Close => {
                first = opening(tokens, first)?;
                let before = first.checked_sub(1).map(|before| tokens[before]);
                let is_applied = before.is_some_and(|token| match token.kind {
                    Kind::Name => !is_keyword(token.text),
                    Kind::Close | Kind::Text => !tokens[first].is("{"),
                    _ => false,
                });
                if is_applied {
                    first -= 1;
                    continue;
                }
            }
            Kind::Operator | Kind::Open => return None,
            Kind::Name if is_keyword(tokens[first].text) => return None,
            _ => {}
        }
        match first.checked_sub(1) {
            Some(before) if tokens[before].is(".") || tokens[before].is("|") => {
                first = before.checked_sub(1)?;
            }
            _ => return Some(first),
        }
    }
}

/// Returns the index behind the last token of the expression after an operator.
fn right_side(tokens: &[CodeToken<'_>], at: usize) -> Option<usize> {
    let mut next = at + 1;
    while tokens.get(next)?.is("-") || tokens.get(next)?.is("+") {
        next += 1;
    }
    next = match tokens[next].kind {
        Kind::Open => closing(tokens, next)? + 1,
        Kind::Close | Kind::Operator => return None,
        _ => next + 1,
    };
    while let Some(token) = tokens.get(next) {
        next = match token.kind {
            Kind::Open if !token.is("{") => closing(tokens, next)? + 1,
            Kind::Operator if token.is(".") || token.is("|") => next + 2,
            _ => break,
        };
    }
    (next <= tokens.len()).then_some(next)
}
