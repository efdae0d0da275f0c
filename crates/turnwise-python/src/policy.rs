//! The inference engine.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::join_all;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use turnwise_candle::{CandlePolicy, Decoder, EngineSettings, ModelError};
use turnwise_rollout::StopSignal;
use turnwise_rollout::{Policy, PolicyError, Sample, SampleRequest, SessionId};
use turnwise_run::{Unobserved, load_model, locate_model};
use turnwise_trajectory::{PolicyVersion, Sampling, StopReason};

use crate::columns::{ColumnNumber, column};
use crate::failure::{chain, exception};
use crate::interrupt::wait;

/// An engine that samples from a model.
#[pyclass(frozen, module = "turnwise._native", name = "Policy")]
pub(crate) struct PythonPolicy {
    policy: CandlePolicy,
    /// The number of sessions so far; each request has its own.
    n_sessions: AtomicU64,
}

impl PythonPolicy {
    pub(crate) fn of(policy: CandlePolicy) -> Self {
        Self { policy, n_sessions: AtomicU64::new(0) }
    }
}

#[pymethods]
impl PythonPolicy {
    /// Loads the model of a directory or a GGUF file. `engine` has settings as JSON.
    #[staticmethod]
    fn load(py: Python<'_>, model: PathBuf, base: Option<PathBuf>, engine: &str) -> PyResult<Self> {
        let settings: EngineSettings = settings(engine)?;
        let decoder = decoder(py, model, base)?;
        let policy = py.detach(|| CandlePolicy::from_model(decoder, settings));
        policy.map(Self::of).map_err(|error| unfit(&error))
    }

    /// The newest version that the engine serves.
    #[getter]
    fn version(&self) -> u64 {
        self.policy.version().0.into()
    }

    /// Samples after several prompts at the same time. Returns ids, log-probabilities and versions of each as columns, why it
    /// stopped, and the ids that truncation kept.
    fn sample<'py>(
        &self,
        py: Python<'py>,
        prompts: Vec<Bound<'py, PyBytes>>,
        seeds: Vec<u64>,
        max_tokens: usize,
        sampling: (f32, f32, u32, f32),
        stop: Vec<u32>,
        first_index: u64,
    ) -> PyResult<Bound<'py, PyList>> {
        let (temperature, top_p, top_k, min_p) = sampling;
        let sampling = Sampling { temperature, top_p, top_k, min_p };
        sampling.validate().map_err(PyValueError::new_err)?;
        let request = |(prompt, seed): (&Bound<'_, PyBytes>, &u64)| SampleRequest {
            prompt: u32::read(prompt.as_bytes()),
            stop: stop.clone(),
            max_tokens,
            sampling,
            seed: *seed,
            first_index,
            min_version: PolicyVersion(0),
            session: SessionId(self.n_sessions.fetch_add(1, Ordering::Relaxed)),
        };
        let requests: Vec<SampleRequest> = prompts.iter().zip(&seeds).map(request).collect();
        let samples = wait(py, || async {
            join_all(requests.into_iter().map(|request| self.serve(request))).await
        })?;
        let samples: PyResult<Vec<_>> = samples
            .into_iter()
            .map(|sample| of_sample(py, &sample.map_err(|error| failed(&error))?))
            .collect();
        PyList::new(py, samples?)
    }
}

impl PythonPolicy {
    async fn serve(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let session = request.session;
        let sample = self.policy.sample(request).await;
        self.policy.release(session);
        sample
    }
}

/// Loads a model; Ctrl-C ends the wait for it.
pub(crate) fn decoder(py: Python<'_>, model: PathBuf, base: Option<PathBuf>) -> PyResult<Decoder> {
    let loaded = wait(py, || async {
        let directory = locate_model(&model)?;
        let stop = StopSignal::never();
        load_model(&directory, base.as_deref(), &mut Unobserved, &stop).await
    })?;
    loaded.map_err(|failure| exception(py, &failure))
}

/// Reads settings that are JSON.
pub(crate) fn settings<T: serde::de::DeserializeOwned>(json: &str) -> PyResult<T> {
    serde_json::from_str(json)
        .map_err(|error| PyValueError::new_err(format!("cannot read the settings {json}: {error}")))
}

/// Returns the exception for a model that cannot be used.
pub(crate) fn unfit(error: &ModelError) -> PyErr {
    PyValueError::new_err(chain(error))
}

fn failed(error: &PolicyError) -> PyErr {
    match error {
        PolicyError::Refused(_) => PyValueError::new_err(chain(error)),
        _ => crate::failure::broken(error),
    }
}

fn of_sample<'py>(py: Python<'py>, sample: &Sample) -> PyResult<Bound<'py, PyDict>> {
    let fields = PyDict::new(py);
    let ids: Vec<u32> = sample.tokens.iter().map(|token| token.id).collect();
    let logprobs: Vec<f32> = sample.tokens.iter().map(|token| token.logprob).collect();
    let versions: Vec<u64> = sample.tokens.iter().map(|token| token.version.0.into()).collect();
    fields.set_item("ids", column(py, &ids))?;
    fields.set_item("logprobs", column(py, &logprobs))?;
    fields.set_item("versions", column(py, &versions))?;
    fields.set_item(
        "stop",
        match sample.stop {
            StopReason::EndOfTurn => "end_of_turn",
            StopReason::MaxTokens => "max_tokens",
            StopReason::Interrupted => "interrupted",
            StopReason::StopText => "stop_text",
        },
    )?;
    fields.set_item("kept", &sample.kept)?;
    Ok(fields)
}
