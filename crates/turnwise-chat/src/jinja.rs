//! A chat template as a program of somebody else's: bounded, and as close to Python's Jinja as templates need.

use std::collections::BTreeMap;
use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use minijinja_contrib::pycompat::unknown_method_callback;
use turnwise_rollout::RenderError;

use crate::python_json::{to_indented_json, to_python_json};

/// Steps of one rendering; published templates take some hundred for each message.
const FUEL: u64 = 200_000;
const MAX_DEPTH: usize = 100;
const NAME: &str = "chat template";

/// The environment with the template in it, as `transformers` sets it up.
///
/// `times` answers `strftime_now`: what a prompt says must not depend on when it is rendered.
pub(crate) fn environment(
    template: &str,
    times: BTreeMap<String, String>,
) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_DEPTH);
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_filter("tojson", to_json);
    // In Python a string is iterable.
    environment.add_test("iterable", |value: &Value| {
        value.kind() == ValueKind::String || value.try_iter().is_ok()
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", move |format: String| {
        let frozen = times.get(&format).cloned();
        frozen.ok_or_else(|| {
            let message =
                format!("the template asks for the time as {format:?}; freeze it in `times`");
            Error::new(ErrorKind::InvalidOperation, message)
        })
    });
    environment.add_template_owned(NAME, template.to_owned())?;
    Ok(environment)
}

/// What the template writes, at most `limit` bytes.
pub(crate) fn render(
    environment: &Environment<'_>,
    context: &serde_json::Value,
    limit: usize,
) -> Result<String, RenderError> {
    let failed = |error: Error| RenderError(format!("{error:#}"));
    let mut output = Capped { bytes: Vec::new(), limit };
    let template = environment.get_template(NAME).map_err(failed)?;
    let context = given(context);
    template.render_captured_to(context, &mut output).map_err(failed)?;
    String::from_utf8(output.bytes).map_err(|error| RenderError(error.to_string()))
}

/// JSON as the template engine holds it, keys in their order.
fn given(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(value) => Value::from(*value),
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(given).collect(),
        serde_json::Value::Object(entries) => {
            Value::from_pairs(entries.iter().map(|(key, value)| (key.as_str(), given(value))))
        }
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Value::from(value),
            (None, Some(value)) => Value::from(value),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the form of a filter")]
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Python's other options are about its own defaults.
    Ok(match indent {
        Some(indent) => to_indented_json(value, indent),
        None => to_python_json(value),
    })
}

struct Capped {
    bytes: Vec<u8>,
    limit: usize,
}

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            let message = format!("the template writes more than {} bytes", self.limit);
            return Err(io::Error::other(message));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
