use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::schema::shortened;

/// Parses one JSON value without duplicate keys, of a depth below 128, and with integers of at most 64 bits.
///
/// With a duplicate key, the tool and a person who reads the call may see different values; likewise with an integer
/// that is rounded to a float.
pub(crate) fn from_str(text: &str) -> serde_json::Result<Value> {
    let Strict(value) = serde_json::from_str(text)?;
    check_integers(text)?;
    Ok(value)
}

/// Parses the JSON value at the start of the text, and returns it with its length in bytes.
pub(crate) fn first(text: &str) -> serde_json::Result<(Value, usize)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Strict>();
    let Some(value) = values.next() else { return Err(de::Error::custom("the text has no value")) };
    let Strict(value) = value?;
    check_integers(&text[..values.byte_offset()])?;
    Ok((value, values.byte_offset()))
}

/// Rejects integers of more than 64 bits. The text is valid JSON.
fn check_integers(text: &str) -> serde_json::Result<()> {
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit()) {
        let value = &rest[at..];
        let length = if value.starts_with('"') {
            string_length(value)
        } else {
            value.find(|c: char| !is_of_number(c)).unwrap_or(value.len())
        };
        let number = &value[..length];
        let is_integer = !number.starts_with('"') && !number.contains(['.', 'e', 'E']);
        if is_integer && number.parse::<i64>().is_err() && number.parse::<u64>().is_err() {
            return Err(de::Error::custom("it has an integer of more than 64 bits"));
        }
        rest = &value[length..];
    }
    Ok(())
}

fn is_of_number(c: char) -> bool {
    c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E')
}

/// Returns the length in bytes of the string at the start of the text, quotes included.
fn string_length(text: &str) -> usize {
    let mut is_escaped = false;
    let end = text.bytes().enumerate().skip(1).find(|(_, c)| {
        let is_end = *c == b'"' && !is_escaped;
        is_escaped = *c == b'\\' && !is_escaped;
        is_end
    });
    end.map_or(text.len(), |(at, _)| at + 1)
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("number out of range"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                let key = shortened(&key);
                return Err(de::Error::custom(format_args!("the key {key:?} is written twice")));
            }
            let Strict(value) = entries.next_value()?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::from_str;

    #[test]
    fn what_is_well_formed_reads_as_usual() {
        let text = r#"{"a": [1, -2, 2.5, true, null, "x"], "b": {"a": {}}}"#;
        assert_eq!(from_str(text).ok(), serde_json::from_str::<Value>(text).ok());
        assert_eq!(from_str(" 3 ").ok(), Some(json!(3)));
    }

    #[test]
    fn a_key_written_twice_is_refused_at_any_depth() {
        let error = from_str(r#"[{"a": {"b": 1, "b": 2}}]"#).expect_err("b is there twice");
        assert!(error.to_string().contains(r#"the key "b" is written twice"#), "{error}");
    }

    #[test]
    fn an_integer_keeps_its_digits_or_is_refused() {
        for text in
            ["18446744073709551615", "-9223372036854775808", "2512292042121000001", "[0, 7]"]
        {
            assert_eq!(from_str(text).expect("it fits").to_string(), text.replace(", ", ","));
        }
        for text in
            ["18446744073709551616", "-9223372036854775809", "{\"a\": [1, 100000000000000000001]}"]
        {
            let error = from_str(text).expect_err("it does not fit");
            assert!(error.to_string().contains("64 bits"), "{error}");
        }
        let quoted =
            r#"{"a\\": "\"18446744073709551616", "b": 1.5e300, "c": 18446744073709551616.0}"#;
        assert!(from_str(quoted).is_ok());
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(from_str(&nested(127)).is_ok());
        assert!(from_str(&nested(128)).is_err());
        assert!(from_str(&"[".repeat(1_000_000)).is_err());
    }
}
