//! Tests of Jinja2 (`x is iterable`) that behave differently in the template engine.

use minijinja::Environment;
use minijinja::value::{Value, ValueKind};

pub(super) fn add(environment: &mut Environment<'_>) {
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
    environment.add_test("number", is_number);
    environment.add_test("integer", is_integer);
    environment.add_test("callable", is_callable);
}

/// Returns whether Python can iterate over a value: true for undefined, which is empty, but not for `none`.
fn is_iterable(value: &Value) -> bool {
    use ValueKind::{Bytes, Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), Undefined | String | Bytes | Seq | Map | Iterable)
}

/// Returns whether a value has a length and items; text and mappings have.
fn is_sequence(value: &Value) -> bool {
    use ValueKind::{Bytes, Map, Seq, String, Undefined};
    matches!(value.kind(), Undefined | String | Bytes | Seq | Map)
}

/// In Python, `True` is a number.
fn is_number(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Bool | ValueKind::Number)
}

fn is_integer(value: &Value) -> bool {
    value.is_integer() && value.kind() == ValueKind::Number
}

fn is_callable(value: &Value) -> bool {
    value.kind() == ValueKind::Plain
}
