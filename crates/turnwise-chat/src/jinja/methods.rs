//! String methods of Python that templates call and the template engine lacks.

use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Calls a Python method of a value.
pub(super) fn call(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let own = value.as_str().filter(|_| value.kind() == ValueKind::String);
    match own.map(|text| of_text(text, method, args)) {
        Some(Ok(Some(answer))) => Ok(answer),
        Some(Err(error)) => Err(error),
        _ => unknown_method_callback(state, value, method, args),
    }
}

fn of_text(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "rsplit" => {
            let (by, most): (Option<&str>, Option<i64>) = from_args(args)?;
            rsplit(text, by, most).into_iter().map(Value::from).collect()
        }
        "partition" => {
            let (by,): (&str,) = from_args(args)?;
            let (before, by, after) = match text.split_once(by) {
                Some((before, after)) => (before, by, after),
                None => (text, "", ""),
            };
            [before, by, after].into_iter().map(Value::from).collect()
        }
        "rpartition" => {
            let (by,): (&str,) = from_args(args)?;
            let (before, by, after) = match text.rsplit_once(by) {
                Some((before, after)) => (before, by, after),
                None => ("", "", text),
            };
            [before, by, after].into_iter().map(Value::from).collect()
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "casefold" => {
            let () = from_args(args)?;
            text.to_lowercase().into()
        }
        "isdecimal" => {
            let () = from_args(args)?;
            (!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())).into()
        }
        "index" | "rindex" => {
            let (what,): (&str,) = from_args(args)?;
            let at = if method == "index" { text.find(what) } else { text.rfind(what) };
            let at =
                at.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "substring not found"))?;
            text[..at].chars().count().into()
        }
        _ => return Ok(None),
    }))
}

/// Implements Python's `rsplit`: a limited number of splits, from the end; without a separator at runs of blanks.
fn rsplit(text: &str, by: Option<&str>, most: Option<i64>) -> Vec<String> {
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let mut parts: Vec<String> = Vec::new();
    let mut rest = Some(if by.is_none() { text.trim() } else { text });
    while let Some(text) = rest {
        let split = match by {
            _ if parts.len() >= most => None,
            Some(by) => text.rsplit_once(by),
            None => text.rsplit_once(char::is_whitespace),
        };
        let (before, part) = split.map_or((None, text), |(before, part)| (Some(before), part));
        parts.push(part.to_owned());
        rest = if by.is_none() { before.map(str::trim_end) } else { before };
    }
    if by.is_none() {
        parts.retain(|part| !part.is_empty());
    }
    parts.reverse();
    parts
}

#[cfg(test)]
mod tests {
    use super::rsplit;

    #[test]
    fn rsplit_is_pythons() {
        assert_eq!(rsplit("a.b.c", Some("."), Some(1)), ["a.b", "c"]);
        assert_eq!(rsplit("a.b.c", Some("."), None), ["a", "b", "c"]);
        assert_eq!(rsplit("", Some("."), None), [""]);
        assert_eq!(rsplit(" a  b ", None, None), ["a", "b"]);
        assert_eq!(rsplit(" a  b  c ", None, Some(1)), ["a  b", "c"]);
    }
}
