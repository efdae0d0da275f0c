//! A scripted player that is a Python function.

use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use turnwise_environment::{Action, Demonstrator, Observation};
use turnwise_rollout::StopHandle;

use crate::environment::NewObject;

/// The first exception of code that has no other way to report it, and the run that it stops.
#[derive(Clone, Default)]
pub(crate) struct Raised {
    first: Arc<Mutex<Option<PyErr>>>,
    stop: Arc<Mutex<Option<StopHandle>>>,
}

impl Raised {
    /// Sets the run that an exception stops from now on.
    pub(crate) fn stops(&self, handle: StopHandle) {
        if let Ok(mut stop) = self.stop.lock() {
            *stop = Some(handle);
        }
    }

    /// Records an exception, if it is the first, and requests a stop.
    pub(crate) fn record(&self, error: PyErr) {
        if let Ok(mut first) = self.first.lock() {
            first.get_or_insert(error);
        }
        if let Ok(Some(stop)) = self.stop.lock().as_deref() {
            stop.stop();
        }
    }

    /// Takes the exception, if there is one.
    pub(crate) fn take(&self) -> Option<PyErr> {
        self.first.lock().ok()?.take()
    }
}

/// A player made by `make`: a function from an observation to an action, both JSON.
pub(crate) struct PythonPlayer {
    make: Box<NewObject>,
    play: Option<Py<PyAny>>,
    raised: Raised,
}

impl PythonPlayer {
    pub(crate) fn new(
        raised: Raised,
        make: impl Fn(Python<'_>) -> PyResult<Py<PyAny>> + Send + 'static,
    ) -> Self {
        Self { make: Box::new(make), play: None, raised }
    }

    fn ask(&mut self, observation: &Observation) -> PyResult<Action> {
        let observation = serde_json::to_string(observation).unwrap_or_default();
        let action: String = Python::attach(|py| {
            let play = match &mut self.play {
                Some(play) => play,
                none => none.insert((self.make)(py)?),
            };
            play.call1(py, (observation,))?.extract(py)
        })?;
        serde_json::from_str(&action).map_err(|error| crate::failure::broken(&error))
    }
}

impl Demonstrator for PythonPlayer {
    /// A player has no way to fail: its exception ends the run, and the empty action is never trained on.
    fn act(&mut self, observation: &Observation) -> Action {
        self.ask(observation).unwrap_or_else(|error| {
            self.raised.record(error);
            Action::default()
        })
    }
}
