//! Chat templates as untrusted programs: bounded, and as close to Python's Jinja as templates need.

mod clock;
mod code;
mod filters;
mod markup;
mod methods;
mod percent;
mod tests;
mod to_json;

use std::collections::BTreeMap;
use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use turnwise_rollout::RenderError;

use clock::Clock;

/// Steps of one rendering, and additional steps for each message; published templates take some hundred for each.
const FUEL: u64 = 200_000;
const FUEL_PER_MESSAGE: u64 = 5_000;
/// Up to this number of messages, the base steps suffice.
const MANY_MESSAGES: u64 = 40;
const MAX_DEPTH: usize = 100;
const NAME: &str = "chat template";

/// Creates the environment with the template, configured as in `transformers`. Every line break of a template is `\n`, as
/// in Jinja2.
///
/// `times` and `clock` determine `strftime_now`: a prompt must not depend on when it is rendered.
pub(crate) fn environment(
    template: &str,
    times: BTreeMap<String, String>,
    time: Option<&str>,
) -> Result<Environment<'static>, Error> {
    let clock = time.map(Clock::parse).transpose().map_err(invalid)?;
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_DEPTH);
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(methods::call);
    tests::add(&mut environment);
    environment.add_filter("tojson", to_json::filter);
    environment.add_filter(percent::FILTER, percent::filter);
    environment.add_filter(markup::FILTER, markup::filter);
    filters::add(&mut environment);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(invalid(message))
    });
    environment.add_function("strftime_now", move |format: String| {
        let frozen = times.get(&format).cloned();
        frozen.or_else(|| clock.as_ref().map(|clock| clock.format(&format))).ok_or_else(|| {
            invalid(format!(
                "the template asks for the time as {format:?}, and a prompt must not depend on when it is made; set \
                 model.time = \"2026-01-31\", or for `turnwise render` --time 2026-01-31"
            ))
        })
    });
    let template = template.replace("\r\n", "\n").replace('\r', "\n");
    let mut adapted = code::rewritten(&adapted(&template), percent::with_filters);
    if markup::is_used_by(&adapted) {
        adapted = code::rewritten(&adapted, markup::with_filters);
    }
    environment.add_template_owned(NAME, adapted)?;
    Ok(environment)
}

/// Formats a moment as `strftime` does; returns `None` if the text is not a moment.
pub(crate) fn formatted(time: &str, format: &str) -> Option<String> {
    Some(Clock::parse(time).ok()?.format(format))
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Turns `{% generation %}` into a scope: it marks the text for training, which tokens mark here. The line break after
/// `{% raw %}` stays, as in Jinja2.
fn adapted(template: &str) -> String {
    let mut written = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, inside)) = rest.split_once("{%") {
        written.push_str(before);
        written.push_str("{%");
        let Some((tag, after)) = inside.split_once("%}") else {
            rest = inside;
            continue;
        };
        rest = after;
        match tag.trim_matches(['-', '+']).trim() {
            "generation" => written.push_str(&tag.replacen("generation", "with", 1)),
            "endgeneration" => written.push_str(&tag.replacen("endgeneration", "endwith", 1)),
            "raw" => {
                written.push_str(tag);
                written.push_str(if tag.ends_with('-') { "%}" } else { "+%}" });
                let end = after.find("endraw").unwrap_or(after.len());
                let end = after[..end].rfind("{%").unwrap_or(end);
                written.push_str(&after[..end]);
                rest = &after[end..];
                continue;
            }
            _ => written.push_str(tag),
        }
        written.push_str("%}");
    }
    written.push_str(rest);
    written
}

/// Renders a template, up to `limit` bytes.
pub(crate) fn render(
    environment: &Environment<'_>,
    context: &serde_json::Value,
    limit: usize,
) -> Result<String, RenderError> {
    let failed = |error: Error| RenderError(error.to_string());
    let n_messages = context["messages"].as_array().map_or(0, Vec::len) as u64;
    let mut environment = std::borrow::Cow::Borrowed(environment);
    if n_messages > MANY_MESSAGES {
        environment.to_mut().set_fuel(Some(FUEL + n_messages * FUEL_PER_MESSAGE));
    }
    let mut output = Capped { bytes: Vec::new(), limit, is_full: false };
    let template = environment.get_template(NAME).map_err(failed)?;
    let rendered = template.render_captured_to(given(context), &mut output);
    if output.is_full {
        return Err(RenderError(format!(
            "the template writes more than {limit} bytes, which does not fit into the context; the conversation is too long"
        )));
    }
    rendered.map_err(failed)?;
    String::from_utf8(output.bytes).map_err(|error| RenderError(error.to_string()))
}

/// Converts JSON to a value of the template engine, with keys in order.
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

struct Capped {
    bytes: Vec<u8>,
    limit: usize,
    /// Whether the output was cut.
    is_full: bool,
}

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            self.is_full = true;
            return Err(io::Error::other("the output is full"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
