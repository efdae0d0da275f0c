//! Failures as Python exceptions.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use turnwise_run::{ExitCode, Failure};

/// Returns the exception for a failure of a run: the class for its kind in `turnwise._errors`, with the text that the command
/// prints.
pub(crate) fn exception(py: Python<'_>, failure: &Failure) -> PyErr {
    let class = match failure.code {
        ExitCode::Refused => "Refused",
        ExitCode::Locked => "RunLocked",
        ExitCode::Numeric => "NotFinite",
        ExitCode::Infrastructure => "TooManyFaults",
        ExitCode::Interrupted | ExitCode::HungUp | ExitCode::Terminated => "Stopped",
        ExitCode::Runtime => "TurnwiseError",
    };
    let text = failure.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
    make(py, class, text, failure.code as u8).unwrap_or_else(|error| error)
}

fn make(py: Python<'_>, class: &str, text: &str, code: u8) -> PyResult<PyErr> {
    let keywords = PyDict::new(py);
    keywords.set_item("exit_code", code)?;
    let class = py.import("turnwise._errors")?.getattr(class)?;
    Ok(PyErr::from_value(class.call((text,), Some(&keywords))?))
}

/// Returns the exception for an error, with its causes.
pub(crate) fn broken(error: &(dyn std::error::Error + 'static)) -> PyErr {
    PyRuntimeError::new_err(chain(error))
}

/// Formats an error and its causes on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
