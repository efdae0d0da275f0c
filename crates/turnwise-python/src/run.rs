//! Training and evaluation.

use std::path::{Path, PathBuf};

use pyo3::prelude::*;
use serde_json::json;
use turnwise_rollout::{StopHandle, StopSignal, stop_signal};
use turnwise_run::{Evaluating, Failure};
use turnwise_training::{EvaluationRecord, Summary};
use turnwise_trajectory::write_line;

use crate::failure::{broken, exception};
use crate::interrupt::wait_or_stop;
use crate::observer::PythonObserver;
use crate::player::Raised;
use crate::settings::{PythonSettings, registry};

/// Trains as the settings say. Returns the directory of the run and its summary as JSON.
#[pyfunction]
#[pyo3(signature = (settings, *, name, directory=None, observer=None))]
pub(crate) fn train(
    py: Python<'_>,
    settings: &PythonSettings,
    name: &str,
    directory: Option<PathBuf>,
    observer: Option<Py<PyAny>>,
) -> PyResult<(PathBuf, String)> {
    let PythonSettings { loaded, registry, raised } = settings;
    let directory = directory
        .or_else(|| loaded.config.run.directory.clone())
        .unwrap_or_else(|| next_directory(name));
    let (stop, signal) = stoppable(raised);
    let mut observer = PythonObserver::new(observer, raised.clone());
    let trained = wait_or_stop(py, &stop, || {
        let path = Some(directory.clone());
        turnwise_run::train(loaded.clone(), name, path, registry, &mut observer, &signal)
    })?;
    let summary: Summary = ended(py, raised, trained)?;
    Ok((directory, text(&summary)?))
}

/// Resumes a run. Returns its summary as JSON, or `None` if nothing was left to do.
#[pyfunction]
#[pyo3(signature = (directory, *, steps=None, environment=None, observer=None))]
pub(crate) fn resume(
    py: Python<'_>,
    directory: PathBuf,
    steps: Option<u64>,
    environment: Option<&Bound<'_, PyAny>>,
    observer: Option<Py<PyAny>>,
) -> PyResult<Option<String>> {
    let raised = Raised::default();
    let registry = registry(environment, &raised)?;
    let (stop, signal) = stoppable(&raised);
    let mut observer = PythonObserver::new(observer, raised.clone());
    let resumed = wait_or_stop(py, &stop, || {
        turnwise_run::resume(&directory, steps, &registry, &mut observer, &signal)
    })?;
    ended(py, &raised, resumed)?.as_ref().map(text).transpose()
}

/// Plays held-out tasks with a model. Returns the result as JSON, and the episodes as lines of JSON.
#[pyfunction]
#[pyo3(signature = (model, *, overrides=Vec::new(), environment=None, observer=None))]
pub(crate) fn evaluate(
    py: Python<'_>,
    model: PathBuf,
    overrides: Vec<String>,
    environment: Option<&Bound<'_, PyAny>>,
    observer: Option<Py<PyAny>>,
) -> PyResult<(String, String)> {
    let raised = Raised::default();
    let registry = registry(environment, &raised)?;
    let (stop, signal) = stoppable(&raised);
    let mut observer = PythonObserver::new(observer, raised.clone());
    let evaluated = wait_or_stop(py, &stop, || async {
        let evaluating =
            Evaluating::new(&model, &overrides, &registry, &mut observer, &signal).await?;
        turnwise_run::evaluate(evaluating, &registry, &mut observer, &signal).await
    })?;
    let evaluation = ended(py, &raised, evaluated)?;
    let mut lines = Vec::new();
    for trajectory in &evaluation.trajectories {
        write_line(&mut lines, trajectory).map_err(|error| broken(&error))?;
    }
    let record = EvaluationRecord::from(&evaluation);
    let (mean, n_broken) = (evaluation.reward_mean, evaluation.n_broken);
    let result = json!({"record": record, "reward_mean": mean, "n_broken": n_broken});
    Ok((result.to_string(), String::from_utf8_lossy(&lines).into_owned()))
}

/// Returns a stop that an exception of the user's own code requests too.
fn stoppable(raised: &Raised) -> (StopHandle, StopSignal) {
    let (stop, signal) = stop_signal();
    raised.stops(stop.clone());
    (stop, signal)
}

/// Returns what a run gave, or the exception that ended it: that of the user's own code first.
fn ended<T>(py: Python<'_>, raised: &Raised, result: Result<T, Failure>) -> PyResult<T> {
    match raised.take() {
        Some(error) => Err(error),
        None => result.map_err(|failure| exception(py, &failure)),
    }
}

fn text(summary: &Summary) -> PyResult<String> {
    serde_json::to_string(summary).map_err(|error| broken(&error))
}

/// Returns `runs/NAME-0001`, or the next number that is free, as the command does.
fn next_directory(name: &str) -> PathBuf {
    let candidate = |number: u16| Path::new("runs").join(format!("{name}-{number:04}"));
    (1..=u16::MAX).map(candidate).find(|path| !path.exists()).unwrap_or_else(|| candidate(u16::MAX))
}
