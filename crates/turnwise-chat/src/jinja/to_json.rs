//! The filter `tojson` of `transformers`.

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Error, ErrorKind};

use crate::python_json::{JsonStyle, to_json};

/// Implements `json.dumps(x, ensure_ascii, indent, separators, sort_keys)`, with positional or named arguments.
#[expect(clippy::needless_pass_by_value, reason = "the form of a filter")]
pub(super) fn filter(value: &Value, places: Rest<Value>, options: Kwargs) -> Result<String, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let mut given = [const { None }; 4];
    for (slot, value) in given.iter_mut().zip(places.iter()) {
        *slot = Some(value.clone());
    }
    if places.len() > names.len() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    for (slot, name) in given.iter_mut().zip(names) {
        let by_name: Option<Value> = options.get(name)?;
        if by_name.is_some() && slot.is_some() {
            return wrong(format!("tojson has two values for `{name}`"));
        }
        *slot = by_name.or(slot.take());
    }
    options.assert_all_used()?;
    if holds_undefined(value) {
        return wrong("an undefined value has no JSON".to_owned());
    }
    let [ensure_ascii, indent, separators, sort_keys] = given;
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let indent = indent_of(indent)?;
    let (item, key) = match separators.filter(|pair| !pair.is_none()) {
        Some(pair) => pair_of(&pair)?,
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let style = JsonStyle {
        item,
        key,
        indent,
        is_ascii: is_true(ensure_ascii),
        is_sorted: is_true(sort_keys),
    };
    Ok(to_json(value, &style))
}

/// Returns the indentation of each level: Python takes a number of blanks, or a text.
fn indent_of(indent: Option<Value>) -> Result<Option<String>, Error> {
    let Some(indent) = indent.filter(|indent| !indent.is_none()) else { return Ok(None) };
    if let Some(text) = indent.as_str() {
        return Ok(Some(text.to_owned()));
    }
    if indent.kind() == ValueKind::Bool {
        return Ok(Some(if indent.is_true() { " " } else { "" }.to_owned()));
    }
    match i64::try_from(indent.clone()) {
        Ok(n) if n <= MAX_INDENT => Ok(Some(" ".repeat(usize::try_from(n).unwrap_or(0)))),
        Ok(n) => wrong(format!("tojson has an indent of {n}; at most {MAX_INDENT} are written")),
        Err(_) => {
            wrong(format!("tojson has the indent {indent}, which is neither a number nor a text"))
        }
    }
}

/// A larger indentation is an attack.
const MAX_INDENT: i64 = 64;

fn pair_of(pair: &Value) -> Result<(String, String), Error> {
    let items: Vec<Value> = pair.try_iter()?.collect();
    match items.as_slice() {
        [item, key] if item.as_str().is_some() && key.as_str().is_some() => {
            Ok((item.to_string(), key.to_string()))
        }
        _ => wrong("tojson takes two texts as separators".to_owned()),
    }
}

fn holds_undefined(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Undefined => true,
        ValueKind::Seq => {
            value.try_iter().is_ok_and(|mut items| items.any(|item| holds_undefined(&item)))
        }
        ValueKind::Map => value.try_iter().is_ok_and(|mut keys| {
            keys.any(|key| value.get_item(&key).is_ok_and(|item| holds_undefined(&item)))
        }),
        _ => false,
    }
}

fn wrong<T>(message: String) -> Result<T, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}
