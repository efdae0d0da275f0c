//! Calls in the notation of a programming language: `NAME(KEY=VALUE)` of Python, and `call:NAME{KEY:VALUE}` of Gemma.

use serde_json::{Map, Number, Value};
use turnwise_environment::CallError;

use crate::call_bodies::Calls;
use crate::schema::shortened;
use crate::strict_json;
use crate::tool_calls::{Mistake, check_length};

/// The most nested lists and objects, as in JSON.
const MAX_DEPTH: usize = 127;
/// The quotes of text in Gemma's notation.
const GEMMA_QUOTES: [&str; 2] = ["<escape>", "<|\"|>"];

/// Parses `[NAME(KEY=VALUE, …), …]`, with or without the brackets, also in a code fence.
pub(crate) fn python(calls: &mut Calls, body: &str) {
    let text = unfenced(body.trim());
    let read = check_length(text).and_then(|()| python_calls(text));
    match read {
        Ok(read) => read.into_iter().for_each(|(raw, call)| calls.push(raw, Ok(call))),
        Err(mistake) => calls.push(body, Err(mistake)),
    }
}

/// Returns whether a text begins with a list of calls as [`python`] parses it.
pub(crate) fn begins_python(text: &str) -> bool {
    let mut reader = Reader { text, at: 0 };
    reader.takes("[") && !reader.name().is_empty() && reader.takes("(")
}

/// Parses `call:NAME{KEY:VALUE, …}`.
pub(crate) fn gemma(calls: &mut Calls, body: &str) {
    let read = || {
        check_length(body)?;
        let mut reader = Reader { text: body.trim(), at: 0 };
        reader.takes("call:");
        let name = reader.name().to_owned();
        if name.is_empty() {
            return Err(wrong("the call has no name"));
        }
        reader.expect("{")?;
        let arguments = reader.entries(&[":", "="], "}", 0)?;
        reader.end()?;
        Ok((name, Value::Object(arguments)))
    };
    calls.push(body, read());
}

/// Parses a value as Python prints it, such as `{'a': 1}`.
pub(crate) fn literal(text: &str) -> Result<Value, Mistake> {
    let mut reader = Reader { text, at: 0 };
    let value = reader.value(0)?;
    reader.end()?;
    Ok(value)
}

fn unfenced(text: &str) -> &str {
    let Some(inside) = text.strip_prefix("```") else { return text };
    let inside = inside.strip_prefix("python").unwrap_or(inside);
    inside.trim_end().trim_end_matches("```").trim()
}

type Call = (String, Value);

fn python_calls(text: &str) -> Result<Vec<(&str, Call)>, Mistake> {
    let mut reader = Reader { text, at: 0 };
    let is_list = reader.takes("[");
    let mut calls = Vec::new();
    loop {
        reader.blanks();
        let from = reader.at;
        let name = reader.name().to_owned();
        if name.is_empty() {
            return Err(wrong("the call has no name"));
        }
        reader.expect("(")?;
        let arguments = reader.entries(&["="], ")", 0)?;
        calls.push((&text[from..reader.at], (name, Value::Object(arguments))));
        reader.takes(",");
        reader.takes(";");
        if is_list && reader.takes("]") || !is_list && reader.rest().trim().is_empty() {
            break;
        }
    }
    reader.end()?;
    Ok(calls)
}

fn wrong(message: impl Into<String>) -> Mistake {
    (CallError::Decode, message.into())
}

/// A position in a text.
struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn blanks(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// Skips blanks and this text, if it follows.
    fn takes(&mut self, text: &str) -> bool {
        self.blanks();
        let is_there = self.rest().starts_with(text);
        self.at += if is_there { text.len() } else { 0 };
        is_there
    }

    fn expect(&mut self, text: &str) -> Result<(), Mistake> {
        if self.takes(text) {
            return Ok(());
        }
        let found = shortened(self.rest());
        Err(wrong(format!("the call cannot be read: {text:?} is expected before {found:?}")))
    }

    fn end(&mut self) -> Result<(), Mistake> {
        self.blanks();
        if self.rest().is_empty() {
            return Ok(());
        }
        Err(wrong(format!("text follows the call: {:?}", shortened(self.rest()))))
    }

    /// Returns the name at this place, which may be empty.
    fn name(&mut self) -> &'a str {
        self.blanks();
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_alphanumeric() && !"_-.".contains(c));
        let name = &rest[..end.unwrap_or(rest.len())];
        self.at += name.len();
        name
    }

    /// Reads keys and values up to `close`. One of `between` separates a key from its value.
    fn entries(
        &mut self,
        between: &[&str],
        close: &str,
        depth: usize,
    ) -> Result<Map<String, Value>, Mistake> {
        let mut entries = Map::new();
        while !self.takes(close) {
            self.blanks();
            let is_quoted = self.quote().is_some();
            let key = if is_quoted { self.string()? } else { self.name().to_owned() };
            if !between.iter().any(|between| self.takes(between)) {
                self.expect(between[0])?;
            }
            let value = self.value(depth)?;
            if entries.contains_key(&key) {
                let key = shortened(&key);
                return Err(wrong(format!("the argument {key:?} is written twice")));
            }
            entries.insert(key, value);
            self.takes(",");
        }
        Ok(entries)
    }

    fn value(&mut self, depth: usize) -> Result<Value, Mistake> {
        if depth > MAX_DEPTH {
            return Err(wrong("the arguments are nested too deeply"));
        }
        self.blanks();
        if self.quote().is_some() {
            return Ok(Value::String(self.string()?));
        }
        if self.takes("{") {
            return Ok(Value::Object(self.entries(&[":"], "}", depth + 1)?));
        }
        if self.takes("[") {
            let mut items = Vec::new();
            while !self.takes("]") {
                items.push(self.value(depth + 1)?);
                self.takes(",");
            }
            return Ok(Value::Array(items));
        }
        let rest = self.rest();
        if rest.starts_with(|c: char| c == '-' || c == '+' || c.is_ascii_digit()) {
            return self.number();
        }
        let value = match self.name() {
            "True" | "true" => Value::Bool(true),
            "False" | "false" => Value::Bool(false),
            "None" | "null" => Value::Null,
            _ => {
                let found = shortened(rest);
                return Err(wrong(format!("the call cannot be read: no value at {found:?}")));
            }
        };
        Ok(value)
    }

    fn number(&mut self) -> Result<Value, Mistake> {
        let rest = self.rest();
        let is_part = |(at, c): (usize, char)| {
            let is_exponent = at > 0 && matches!(c, '+' | '-') && rest[..at].ends_with(['e', 'E']);
            let is_sign = at == 0 && matches!(c, '+' | '-');
            is_sign || is_exponent || c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E')
        };
        let end = rest.char_indices().find(|part| !is_part(*part)).map_or(rest.len(), |(at, _)| at);
        let text = &rest[..end];
        self.at += end;
        let number = match (text.parse::<i64>(), text.parse::<u64>()) {
            (Ok(number), _) => Some(Number::from(number)),
            (_, Ok(number)) => Some(Number::from(number)),
            _ if !text.contains(['.', 'e', 'E']) => None,
            _ => text.parse::<f64>().ok().and_then(Number::from_f64),
        };
        number.map(Value::Number).ok_or_else(|| {
            wrong(format!("{:?} is not a number, or has more than 64 bits", shortened(text)))
        })
    }

    /// Returns the quote at this place.
    fn quote(&self) -> Option<&'static str> {
        let quotes = ["\"", "'"].into_iter().chain(GEMMA_QUOTES);
        quotes.into_iter().find(|quote| self.rest().starts_with(quote))
    }

    /// Reads the text between quotes; Python's and JSON's have escapes.
    fn string(&mut self) -> Result<String, Mistake> {
        let quote = self.quote().unwrap_or_default();
        self.at += quote.len();
        let inside = self.rest();
        let unclosed = || wrong(format!("a text is not closed with {quote:?}"));
        if GEMMA_QUOTES.contains(&quote) {
            let (text, _) = inside.split_once(quote).ok_or_else(unclosed)?;
            self.at += text.len() + quote.len();
            return Ok(text.to_owned());
        }
        let mut is_escaped = false;
        let end = inside.char_indices().find(|(_, c)| {
            let is_end = !is_escaped && quote.starts_with(*c);
            is_escaped = *c == '\\' && !is_escaped;
            is_end
        });
        let (end, _) = end.ok_or_else(unclosed)?;
        self.at += end + quote.len();
        unescaped(&inside[..end])
    }
}

/// Replaces the escapes that JSON and Python share, and those of quotes; another backslash stays.
fn unescaped(text: &str) -> Result<String, Mistake> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let Some(escaped) = after.chars().next() else { break };
        rest = &after[escaped.len_utf8()..];
        match escaped {
            'n' => plain.push('\n'),
            't' => plain.push('\t'),
            'r' => plain.push('\r'),
            '\\' | '\'' | '"' => plain.push(escaped),
            'u' => {
                // A pair of surrogates is one character.
                let pair = [12, 6].into_iter().find_map(|length| {
                    let code = format!("\"\\{}\"", after.get(..length - 1)?);
                    let Ok(Value::String(text)) = strict_json::from_str(&code) else { return None };
                    (text.chars().count() == 1).then_some((text, length - 1))
                });
                let (text, length) = pair.ok_or_else(|| wrong("a text has an invalid escape"))?;
                plain.push_str(&text);
                rest = &after[length..];
            }
            other => {
                plain.push('\\');
                plain.push(other);
            }
        }
    }
    plain.push_str(rest);
    Ok(plain)
}
