//! An environment that is a Python object.

use std::sync::Arc;

use async_trait::async_trait;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use turnwise_environment::{
    Action, Environment, EnvironmentError, ErrorKind, Observation, Step, ToolSpec,
};

use crate::failure::chain;
use crate::player::Raised;

/// Makes a Python object.
pub(crate) type NewObject = dyn Fn(Python<'_>) -> PyResult<Py<PyAny>> + Send;

/// One episode of an environment in Python. The object is made on the thread that resets it, and each call holds the
/// interpreter's lock.
pub(crate) struct PythonEnvironment {
    begin: Box<NewObject>,
    tools: Arc<Vec<ToolSpec>>,
    episode: Option<Py<PyAny>>,
    raised: Raised,
}

impl PythonEnvironment {
    /// Creates an environment whose episode `begin` makes: an object with `reset(seed)` and `step(action)`, both of which
    /// speak JSON.
    pub(crate) fn new(
        tools: Arc<Vec<ToolSpec>>,
        raised: Raised,
        begin: impl Fn(Python<'_>) -> PyResult<Py<PyAny>> + Send + 'static,
    ) -> Self {
        Self { begin: Box::new(begin), tools, episode: None, raised }
    }

    /// Returns the failure of an environment whose code raised an exception: type, message, and the line that raised it. Ctrl-C
    /// and `sys.exit` end the run, because the environment is not what broke.
    fn failed(&self, error: &PyErr) -> EnvironmentError {
        Python::attach(|py| {
            if !error.is_instance_of::<PyException>(py) {
                self.raised.record(error.clone_ref(py));
            }
            EnvironmentError::new(describe(py, error))
        })
    }
}

#[async_trait]
impl Environment for PythonEnvironment {
    async fn reset(&mut self, seed: u64) -> Result<Observation, EnvironmentError> {
        let told = Python::attach(|py| -> PyResult<String> {
            let episode = (self.begin)(py)?;
            let told = episode.call_method1(py, "reset", (seed,))?.extract(py)?;
            self.episode = Some(episode);
            Ok(told)
        });
        let told = told.map_err(|error| self.failed(&error))?;
        serde_json::from_str(&told).map_err(|error| unreadable("an observation", &error))
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        let Some(episode) = &self.episode else {
            let error = EnvironmentError::new("cannot take a step before the environment is reset");
            return Err(error.of_kind(ErrorKind::Protocol));
        };
        let action =
            serde_json::to_string(&action).map_err(|error| unreadable("an action", &error))?;
        let told = Python::attach(|py| -> PyResult<String> {
            episode.call_method1(py, "step", (action,))?.extract(py)
        });
        let told = told.map_err(|error| self.failed(&error))?;
        serde_json::from_str(&told).map_err(|error| unreadable("a step", &error))
    }

    fn tools(&self) -> Vec<ToolSpec> {
        self.tools.to_vec()
    }

    fn is_blocking(&self) -> bool {
        true
    }
}

fn unreadable(what: &str, error: &serde_json::Error) -> EnvironmentError {
    EnvironmentError::new(format!(
        "cannot read {what} of the environment in Python: {}",
        chain(error)
    ))
}

/// Describes an exception in one line, with the place in the user's own code.
fn describe(py: Python<'_>, error: &PyErr) -> String {
    let described = || -> PyResult<String> {
        let describe = py.import("turnwise._errors")?.getattr("describe")?;
        // Unlike the value alone, this has the traceback before Python 3.12 too.
        describe.call1((error.clone_ref(py).into_value(py),))?.extract()
    };
    described().unwrap_or_else(|_| error.to_string())
}
