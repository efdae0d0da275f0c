//! Python's `%` on text: `'%s-%d' % (name, n)`, which the template engine has as a filter alone.

use minijinja::value::{Tuple, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// The filter that takes the place of the operator.
pub(super) const FILTER: &str = "percent";
/// The most operators that are rewritten in one tag.
const MAX_OPERATORS: usize = 256;

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

/// Replaces the operator by the filter where its left side may be text.
pub(super) fn rewritten(template: &str) -> String {
    let mut written = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        written.push_str(before);
        let inside = tag.get(2..).unwrap_or_default();
        let bare = inside.trim_start_matches(['-', '+']).trim_start();
        let length = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}"),
            Some(b'%') if bare.starts_with("raw") => tag.find("endraw"),
            Some(b'%' | b'{') => {
                let end = tokens(inside).map_or(inside.len(), |(_, end)| end);
                written.push_str(&tag[..2]);
                written.push_str(&with_filters(&inside[..end]));
                rest = &inside[end..];
                continue;
            }
            _ => Some(1),
        };
        let length = length.unwrap_or(tag.len());
        written.push_str(&tag[..length]);
        rest = &tag[length..];
    }
    written.push_str(rest);
    written
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Name,
    Text,
    Number,
    Open,
    Close,
    Operator,
}

#[derive(Clone, Copy, Debug)]
struct CodeToken<'a> {
    kind: Kind,
    start: usize,
    text: &'a str,
}

impl CodeToken<'_> {
    fn end(&self) -> usize {
        self.start + self.text.len()
    }

    fn is(&self, text: &str) -> bool {
        self.kind != Kind::Text && self.text == text
    }
}

/// Returns the tokens up to the end of a tag, and the place of that end; `None` if a text or the tag is not closed.
fn tokens(code: &str) -> Option<(Vec<CodeToken<'_>>, usize)> {
    let mut tokens = Vec::new();
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(c) = code[at..].chars().next() {
        let rest = &code[at..];
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let (kind, length) = match c {
            c if c.is_whitespace() => {
                at += c.len_utf8();
                continue;
            }
            '%' | '}' if depth == 0 && (rest.starts_with("%}") || rest.starts_with("}}")) => {
                return Some((tokens, at));
            }
            '\'' | '"' => (Kind::Text, text_length(rest)?),
            '(' | '[' | '{' => (Kind::Open, 1),
            ')' | ']' | '}' => (Kind::Close, 1),
            c if is_word(c) => {
                let kind = if c.is_ascii_digit() { Kind::Number } else { Kind::Name };
                (kind, rest.find(|c| !is_word(c)).unwrap_or(rest.len()))
            }
            _ if rest.starts_with("**") || rest.starts_with("//") => (Kind::Operator, 2),
            c => (Kind::Operator, c.len_utf8()),
        };
        depth = match kind {
            Kind::Open => depth + 1,
            Kind::Close => depth.saturating_sub(1),
            _ => depth,
        };
        tokens.push(CodeToken { kind, start: at, text: &rest[..length] });
        at += length;
    }
    None
}

/// Returns the length of the text literal at the start, quotes included.
fn text_length(code: &str) -> Option<usize> {
    let quote = code.chars().next()?;
    let mut is_escaped = false;
    let end = code.char_indices().skip(1).find(|(_, c)| {
        let is_end = *c == quote && !is_escaped;
        is_escaped = *c == '\\' && !is_escaped;
        is_end
    });
    end.map(|(at, _)| at + 1)
}

fn with_filters(code: &str) -> String {
    let mut code = code.to_owned();
    for _ in 0..MAX_OPERATORS {
        // The end of the tag, which its code lacks.
        let whole = format!("{code}%}}");
        let Some((tokens, _)) = tokens(&whole) else { break };
        let mut places = (0..tokens.len()).filter(|at| tokens[*at].is("%"));
        let Some((left, at, right)) = places.find_map(|at| operands(&tokens, at)) else { break };
        let operator = tokens[at];
        code = format!(
            "{}({})|{FILTER}({}){}",
            &whole[..left],
            &whole[left..operator.start],
            &whole[operator.end()..right],
            &whole[right..whole.len() - 2],
        );
    }
    code
}

/// Returns the start of the left side of the operator at `at`, the operator, and the end of its right side; `None` if
/// both sides are numbers, or the left side has an operator of the same rank.
fn operands(tokens: &[CodeToken<'_>], at: usize) -> Option<(usize, usize, usize)> {
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
    Some((tokens[left].start, at, tokens[right - 1].end()))
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

/// Returns the index of the opening bracket of a closing one.
fn opening(tokens: &[CodeToken<'_>], close: usize) -> Option<usize> {
    let mut depth = 0_usize;
    (0..=close).rev().find(|at| {
        match tokens[*at].kind {
            Kind::Close => depth += 1,
            Kind::Open => depth -= 1,
            _ => {}
        }
        depth == 0
    })
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

/// Returns the index of the closing bracket of an opening one.
fn closing(tokens: &[CodeToken<'_>], open: usize) -> Option<usize> {
    let mut depth = 0_usize;
    (open..tokens.len()).find(|at| {
        match tokens[*at].kind {
            Kind::Open => depth += 1,
            Kind::Close => depth -= 1,
            _ => {}
        }
        depth == 0
    })
}

fn is_keyword(name: &str) -> bool {
    ["if", "else", "elif", "in", "not", "and", "or", "is", "for", "set"].contains(&name)
}
