//! The settings of a run, with the environments that they can name.

use std::path::{Path, PathBuf};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use serde_json::Value;
use turnwise_run::config::{self, Loaded};
use turnwise_run::{Registry, load};

use crate::failure::exception;
use crate::player::Raised;
use crate::suite::suite;

/// Settings that were read and checked, and the environment in Python if there is one.
#[pyclass(frozen, module = "turnwise._native", name = "Settings")]
pub(crate) struct PythonSettings {
    pub(crate) loaded: Loaded,
    pub(crate) registry: Registry,
    pub(crate) raised: Raised,
}

#[pymethods]
impl PythonSettings {
    /// Reads a TOML file, or settings as JSON, with overrides of the form `train.learning_rate=5e-4` after it. `environment`
    /// is a `SuiteAdapter`.
    #[new]
    #[pyo3(signature = (*, file=None, json=None, overrides=Vec::new(), environment=None))]
    fn new(
        py: Python<'_>,
        file: Option<PathBuf>,
        json: Option<&str>,
        overrides: Vec<String>,
        environment: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let raised = Raised::default();
        let registry = registry(environment, &raised)?;
        let loaded = match (&file, json) {
            (Some(file), _) => load(file, &overrides, &registry),
            (None, json) => {
                let text = json.map_or_else(|| Ok(String::new()), toml)?;
                config::from_text("the settings given in Python", &text, &overrides, &registry)
            }
        };
        let loaded = loaded.map_err(|failure| exception(py, &failure))?;
        Ok(Self { loaded, registry, raised })
    }

    /// The most turns of an episode.
    #[getter]
    fn max_turns(&self) -> usize {
        self.loaded.config.limits.max_turns
    }

    /// The directory that the settings name.
    #[getter]
    fn directory(&self) -> Option<&Path> {
        self.loaded.config.run.directory.as_deref()
    }

    /// Every setting, as JSON.
    fn to_json(&self) -> PyResult<String> {
        serde_json::to_string(&self.loaded.config).map_err(|error| crate::failure::broken(&error))
    }
}

/// Returns turnwise's own environments, and the one in Python if there is one.
pub(crate) fn registry(
    environment: Option<&Bound<'_, PyAny>>,
    raised: &Raised,
) -> PyResult<Registry> {
    let registry = Registry::builtin();
    let Some(environment) = environment else { return Ok(registry) };
    let suite = suite(environment, raised)?;
    let name = suite.name().to_owned();
    if registry.names().any(|other| other == name) {
        return Err(PyValueError::new_err(format!(
            "turnwise has an environment called `{name}` already: set another name"
        )));
    }
    Ok(registry.with(suite))
}

/// Writes settings that are JSON as TOML, so that one reader checks all settings.
fn toml(json: &str) -> PyResult<String> {
    let value: Value =
        serde_json::from_str(json).map_err(|error| PyValueError::new_err(error.to_string()))?;
    toml_edit::ser::to_string_pretty(&value).map_err(|error| {
        PyValueError::new_err(format!("cannot write the settings as TOML: {error}"))
    })
}
