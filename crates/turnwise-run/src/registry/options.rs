//! Reads options into an environment's settings; errors name the option.

use serde::de::value::Error;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Value};

use super::SuiteError;
use crate::Failure;

/// Parses options from arguments such as `span=20`; the value is TOML, or a string if it is not valid TOML.
///
/// # Errors
/// When an argument has no `=`.
pub fn from_arguments(arguments: &[String]) -> Result<Value, Failure> {
    let mut options = Map::new();
    for argument in arguments {
        let (key, value) = argument.split_once('=').ok_or_else(|| {
            Failure::refused(format!("`{argument}` is not KEY=VALUE"))
                .help("options of an environment are written as in  span=20")
        })?;
        let read: Option<Map<String, Value>> =
            toml_edit::de::from_str(&format!("value = {value}")).ok();
        let value = read.and_then(|mut read| read.remove("value")).unwrap_or_else(|| value.into());
        options.insert(key.trim().to_owned(), value);
    }
    Ok(Value::Object(options))
}

/// Reads the settings `T`, a struct whose fields all have defaults, from an object or null.
///
/// # Errors
/// When an option is unknown, or its value of the wrong kind.
pub(super) fn read<T: DeserializeOwned>(
    environment: &str,
    options: &Value,
) -> Result<T, SuiteError> {
    let nothing = Map::new();
    let options = match options {
        Value::Object(options) => options,
        Value::Null => &nothing,
        _ => return Err(SuiteError::NotOptions { environment: environment.to_owned() }),
    };
    let environment = environment.to_owned();
    let known = fields_of::<T>();
    for (option, value) in options {
        let option = option.clone();
        if !known.contains(&option.as_str()) {
            let known = known.iter().map(|&known| known.to_owned()).collect();
            return Err(SuiteError::UnknownOption { environment, option, known });
        }
        // Each option is read alone, because an error does not say which of several options it is about.
        let alone = Value::Object(Map::from_iter([(option.clone(), value.clone())]));
        // A missing field may be among the other options.
        if let Err(error) = serde_json::from_value::<T>(alone)
            && !error.to_string().starts_with("missing field")
        {
            return Err(SuiteError::WrongValue { environment, option, why: error.to_string() });
        }
    }
    serde_json::from_value(Value::Object(options.clone())).map_err(|error| {
        let option = options.keys().cloned().collect::<Vec<String>>().join(", ");
        SuiteError::WrongValue { environment, option, why: error.to_string() }
    })
}

/// Refuses every option.
pub(super) fn none(environment: &str, options: &Value) -> Result<(), SuiteError> {
    let environment = environment.to_owned();
    match options {
        Value::Null => Ok(()),
        Value::Object(options) => match options.keys().next() {
            None => Ok(()),
            Some(option) => {
                let (option, known) = (option.clone(), Vec::new());
                Err(SuiteError::UnknownOption { environment, option, known })
            }
        },
        _ => Err(SuiteError::NotOptions { environment }),
    }
}

/// Returns the fields that a struct reads. Its serialised defaults would not do: a field that is `None` may be left out
/// there.
fn fields_of<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut fields: &[&str] = &[];
    // Deserialising always fails; only the requested fields matter.
    let _ = T::deserialize(Fields(&mut fields));
    fields
}

/// Records the fields that a struct requests, and provides none.
struct Fields<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Fields<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("there is nothing to read"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn arguments_are_read_as_toml_or_as_strings() {
        let arguments = ["span=20", "wide = true", "name=a b", "x=\"=\""].map(str::to_owned);
        let options = from_arguments(&arguments).expect("all have a value");
        assert_eq!(options, json!({"span": 20, "wide": true, "name": "a b", "x": "="}));
        assert!(from_arguments(&["span".to_owned()]).is_err());
    }
}
