use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

/// Style of JSON: the options of Python's `json.dumps`.
pub(crate) struct JsonStyle {
    /// The separator of items.
    pub(crate) item: String,
    /// The separator of a key and its value.
    pub(crate) key: String,
    /// The indentation of each level; each item is then on a line of its own.
    pub(crate) indent: Option<String>,
    /// Whether other characters than ASCII are escaped.
    pub(crate) is_ascii: bool,
    /// Whether keys are sorted.
    pub(crate) is_sorted: bool,
}

/// Writes JSON as chat templates do: Python's `json.dumps(…, ensure_ascii=False)`, with `", "` and `": "`.
///
/// Models were trained on this spacing. Object keys have the order of the value's map.
pub(crate) fn to_python_json(value: &impl Serialize) -> String {
    let style = JsonStyle {
        item: ", ".to_owned(),
        key: ": ".to_owned(),
        indent: None,
        is_ascii: false,
        is_sorted: false,
    };
    to_json(value, &style)
}

/// Writes JSON with line breaks: Python's `json.dumps(…, ensure_ascii=False, indent=…)`.
pub(crate) fn to_indented_json(value: &impl Serialize, indent: usize) -> String {
    let style = JsonStyle {
        item: ",".to_owned(),
        key: ": ".to_owned(),
        indent: Some(" ".repeat(indent)),
        is_ascii: false,
        is_sorted: false,
    };
    to_json(value, &style)
}

pub(crate) fn to_json(value: &impl Serialize, style: &JsonStyle) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    let mut text = String::new();
    write_value(&mut text, &value, style, 0);
    text
}

fn write_value(out: &mut String, value: &Value, style: &JsonStyle, depth: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Number(number) => write_number(out, number),
        Value::String(text) => write_text(out, text, style.is_ascii),
        Value::Array(items) if items.is_empty() => out.push_str("[]"),
        Value::Object(entries) if entries.is_empty() => out.push_str("{}"),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                begin_item(out, index, style, depth + 1);
                write_value(out, item, style, depth + 1);
            }
            end_items(out, style, depth);
            out.push(']');
        }
        Value::Object(entries) => {
            let mut entries: Vec<_> = entries.iter().collect();
            if style.is_sorted {
                entries.sort_by_key(|(key, _)| *key);
            }
            out.push('{');
            for (index, (key, value)) in entries.into_iter().enumerate() {
                begin_item(out, index, style, depth + 1);
                write_text(out, key, style.is_ascii);
                out.push_str(&style.key);
                write_value(out, value, style, depth + 1);
            }
            end_items(out, style, depth);
            out.push('}');
        }
    }
}

fn begin_item(out: &mut String, index: usize, style: &JsonStyle, depth: usize) {
    if index > 0 {
        out.push_str(&style.item);
    }
    new_line(out, style, depth);
}

fn end_items(out: &mut String, style: &JsonStyle, depth: usize) {
    new_line(out, style, depth);
}

fn new_line(out: &mut String, style: &JsonStyle, depth: usize) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        (0..depth).for_each(|_| out.push_str(indent));
    }
}

fn write_text(out: &mut String, text: &str, is_ascii: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            c if c < ' ' || is_ascii => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Writes integers unchanged, and floats as Python's `repr`: the shortest digits that read back, with an exponent below
/// 1e-4 and from 1e16 on.
fn write_number(out: &mut String, number: &serde_json::Number) {
    match number.as_f64().filter(|_| number.is_f64()) {
        Some(value) => out.push_str(&python_float(value)),
        None => {
            let _ = write!(out, "{number}");
        }
    }
}

fn python_float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.unsigned_abs());
    }
    let plain = format!("{value}");
    if plain.contains('.') { plain } else { plain + ".0" }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{JsonStyle, python_float, to_indented_json, to_json, to_python_json};

    #[test]
    fn the_spacing_is_pythons() {
        let value = json!({"a": [1, 2.5, null, -2.5e-7], "b": {}, "é": "\"\n\u{1f}\u{7f}"});
        assert_eq!(
            to_python_json(&value),
            "{\"a\": [1, 2.5, null, -2.5e-07], \"b\": {}, \"é\": \"\\\"\\n\\u001f\u{7f}\"}"
        );
    }

    #[test]
    fn the_indentation_is_pythons() {
        let value = json!({"a": [1, {}], "b": []});
        let expected = "{\n    \"a\": [\n        1,\n        {}\n    ],\n    \"b\": []\n}";
        assert_eq!(to_indented_json(&value, 4), expected);
    }

    #[test]
    fn keys_are_sorted_and_text_is_escaped_where_it_is_asked_for() {
        let style = JsonStyle {
            item: ",".to_owned(),
            key: ":".to_owned(),
            indent: None,
            is_ascii: true,
            is_sorted: true,
        };
        let value = json!({"b": "é😀\u{7f}", "a": [1, 2]});
        assert_eq!(to_json(&value, &style), "{\"a\":[1,2],\"b\":\"\\u00e9\\ud83d\\ude00\\u007f\"}");
    }

    // Python: repr(x).
    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases = [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (123_456_789.125, "123456789.125"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e100, "1.25e+100"),
            (5e-324, "5e-324"),
        ];
        for (value, expected) in cases {
            assert_eq!(python_float(value), expected);
        }
    }
}
