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
    if method == "index" && value.kind() == ValueKind::Seq {
        return index_in(value, args);
    }
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
        _ => return of_layout(text, method, args),
    }))
}

/// Calls the methods that pad a text, change its case or look at a part of it.
fn of_layout(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            let n_zeros = missing(text, width)?;
            format!("{sign}{}{digits}", "0".repeat(n_zeros)).into()
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<&str>) = from_args(args)?;
            let n_blanks = missing(text, width)?;
            let n_left = match method {
                "ljust" => 0,
                "rjust" => n_blanks,
                // Python puts the odd blank of an even width to the right, and that of an odd width to the left.
                _ => n_blanks / 2 + (n_blanks & width & 1),
            };
            let fill = fill.unwrap_or(" ");
            format!("{}{text}{}", fill.repeat(n_left), fill.repeat(n_blanks - n_left)).into()
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swap = |c: char| {
                if c.is_uppercase() {
                    c.to_lowercase().to_string()
                } else {
                    c.to_uppercase().to_string()
                }
            };
            text.chars().map(swap).collect::<String>().into()
        }
        "istitle" => {
            let () = from_args(args)?;
            is_title(text).into()
        }
        "expandtabs" => {
            let (width,): (Option<usize>,) = from_args(args)?;
            with_blanks(text, width.unwrap_or(8).min(MAX_WIDTH)).into()
        }
        "startswith" | "endswith" if args.len() > 1 => {
            let (affix, start, end): (&Value, i64, Option<i64>) = from_args(args)?;
            let place = |at: i64| {
                let n_chars = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
                let at = if at < 0 { (n_chars + at).max(0) } else { at.min(n_chars) };
                let byte = text.char_indices().nth(usize::try_from(at).unwrap_or(0));
                byte.map_or(text.len(), |(byte, _)| byte)
            };
            let part = text.get(place(start)..end.map_or(text.len(), place)).unwrap_or_default();
            return has_affix(part, method, affix).map(Some);
        }
        _ => return Ok(None),
    }))
}

/// The widest text that a method makes by padding.
const MAX_WIDTH: usize = 65_536;

/// Returns the number of characters that a text lacks to a width.
fn missing(text: &str, width: usize) -> Result<usize, Error> {
    if width > MAX_WIDTH {
        let message = format!("a text of {width} characters is too long");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    Ok(width.saturating_sub(text.chars().count()))
}

/// Returns whether every word begins with a capital letter and goes on with small ones.
fn is_title(text: &str) -> bool {
    let (mut is_inside, mut has_letter) = (false, false);
    let is_right = |c: char| {
        let is_fitting = match (c.is_uppercase(), c.is_lowercase()) {
            (true, _) => !is_inside,
            (_, true) => is_inside,
            _ => true,
        };
        is_inside = c.is_uppercase() || c.is_lowercase();
        has_letter |= is_inside;
        is_fitting
    };
    text.chars().all(is_right) && has_letter
}

/// Replaces tabs by blanks up to the next column.
fn with_blanks(text: &str, width: usize) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut column = 0;
    for c in text.chars() {
        match c {
            '\t' if width > 0 => {
                let n_blanks = width - column % width;
                plain.push_str(&" ".repeat(n_blanks));
                column += n_blanks;
            }
            '\t' => {}
            c => {
                plain.push(c);
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    plain
}

/// Returns whether a part of a text starts or ends with a text, or with one of a list.
fn has_affix(part: &str, method: &str, affix: &Value) -> Result<Value, Error> {
    let is_there = |affix: &str| match method {
        "startswith" => part.starts_with(affix),
        _ => part.ends_with(affix),
    };
    if let Some(affix) = affix.as_str() {
        return Ok(is_there(affix).into());
    }
    Ok(affix.try_iter()?.any(|affix| affix.as_str().is_some_and(is_there)).into())
}

/// Returns the place of an item in a list.
fn index_in(list: &Value, args: &[Value]) -> Result<Value, Error> {
    let (item,): (&Value,) = from_args(args)?;
    let at = list.try_iter()?.position(|other| other == *item);
    at.map(Value::from)
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "the item is not in the list"))
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
