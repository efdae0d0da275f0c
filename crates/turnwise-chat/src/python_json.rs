use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// JSON as chat templates write it: Python's `json.dumps(…, ensure_ascii=False)`, with `", "` and `": "`.
///
/// Models were trained on this spacing. Object keys come in the order of the value's map.
pub(crate) fn to_python_json(value: &impl Serialize) -> String {
    let mut bytes = Vec::new();
    value
        .serialize(&mut Serializer::with_formatter(&mut bytes, Python))
        .expect("a JSON value can be written to memory");
    String::from_utf8(bytes).expect("JSON is UTF-8")
}

/// The same with line breaks: Python's `json.dumps(…, ensure_ascii=False, indent=…)`.
pub(crate) fn to_indented_json(value: &impl Serialize, indent: usize) -> String {
    let mut bytes = Vec::new();
    let indent = " ".repeat(indent.min(MAX_INDENT));
    let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
    value
        .serialize(&mut Serializer::with_formatter(&mut bytes, formatter))
        .expect("a JSON value can be written to memory");
    String::from_utf8(bytes).expect("JSON is UTF-8")
}

/// More is no indentation but an attack.
const MAX_INDENT: usize = 16;

struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        separate(writer, first)
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        separate(writer, first)
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        let written = serde_json::Number::from_f64(value).map(|number| number.to_string());
        let written = written.unwrap_or_else(|| "null".to_owned());
        // Python's exponents have a sign and two digits at least.
        match written.split_once('e') {
            Some((digits, exponent)) => {
                let (sign, exponent) = match exponent.strip_prefix('-') {
                    Some(exponent) => ('-', exponent),
                    None => ('+', exponent.trim_start_matches('+')),
                };
                write!(writer, "{digits}e{sign}{exponent:0>2}")
            }
            None => writer.write_all(written.as_bytes()),
        }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

fn separate<W: ?Sized + io::Write>(writer: &mut W, first: bool) -> io::Result<()> {
    if first { Ok(()) } else { writer.write_all(b", ") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{to_indented_json, to_python_json};

    #[test]
    fn the_spacing_is_pythons() {
        let value = json!({"a": [1, 2.5, null, -2.5e-7], "b": {}, "é": "\"\n"});
        assert_eq!(
            to_python_json(&value),
            r#"{"a": [1, 2.5, null, -2.5e-07], "b": {}, "é": "\"\n"}"#
        );
    }

    #[test]
    fn the_indentation_is_pythons() {
        let value = json!({"a": [1, {}], "b": []});
        let expected = "{\n    \"a\": [\n        1,\n        {}\n    ],\n    \"b\": []\n}";
        assert_eq!(to_indented_json(&value, 4), expected);
    }
}
