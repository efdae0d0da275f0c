//! The files of a run, for reading.

use std::fs;
use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use serde_json::{Value, json};
use turnwise_training::{EpisodeFile, RunFiles, RunState};
use turnwise_trajectory::{Outcome, SampledToken, Span, TokenId, Trajectory, Turn, read_line};

use crate::columns::column;
use crate::failure::{broken, chain};

/// The files of a run.
#[pyclass(frozen, module = "turnwise._native")]
pub(crate) struct RunReader {
    files: RunFiles,
}

#[pymethods]
impl RunReader {
    /// Opens the directory of a run.
    #[new]
    fn new(path: PathBuf) -> PyResult<Self> {
        let files = RunFiles::open(&path);
        let files = files.map_err(|error| PyValueError::new_err(chain(&error)))?;
        Ok(Self { files })
    }

    /// What the run is doing.
    #[getter]
    fn state(&self) -> &'static str {
        match self.files.state() {
            RunState::Going => "going",
            RunState::Stopped => "stopped",
            RunState::Finished => "finished",
        }
    }

    /// The metrics of every step, as JSON.
    fn metrics(&self, py: Python<'_>) -> PyResult<String> {
        py.detach(|| self.files.metrics())
            .map(|rows| Value::from(rows).to_string())
            .map_err(|error| broken(&error))
    }

    /// The events of the run, as JSON.
    fn events(&self) -> PyResult<String> {
        let events = self.files.events().map_err(|error| broken(&error))?;
        Ok(Value::from(events).to_string())
    }

    /// The evaluations with their names, oldest first, as JSON.
    fn evaluations(&self) -> PyResult<String> {
        serde_json::to_string(&self.files.evaluations()).map_err(|error| broken(&error))
    }

    /// The damaged parts of the files, as sentences.
    fn damage(&self) -> PyResult<Vec<String>> {
        let damage = self.files.damage().map_err(|error| broken(&error))?;
        Ok(damage.iter().map(ToString::to_string).collect())
    }

    /// The settings of the run with every default, as JSON.
    fn settings(&self) -> PyResult<String> {
        let path = self.files.path().join("run.toml");
        let unreadable = |error: &dyn std::fmt::Display| {
            PyValueError::new_err(format!("cannot read {}: {error}", path.display()))
        };
        let text = fs::read_to_string(&path).map_err(|error| unreadable(&error))?;
        let settings: Value = toml_edit::de::from_str(&text).map_err(|error| unreadable(&error))?;
        Ok(settings.to_string())
    }

    /// The files of episodes: the steps, and the names of the evaluations.
    fn episode_files(&self) -> PyResult<(Vec<u64>, Vec<String>)> {
        let (mut steps, mut evaluations) = (Vec::new(), Vec::new());
        for file in self.files.episode_files().map_err(|error| broken(&error))? {
            match file {
                EpisodeFile::Step(step) => steps.push(step),
                EpisodeFile::Evaluation(name) => evaluations.push(name),
            }
        }
        Ok((steps, evaluations))
    }

    /// The episodes of a step, or of an evaluation.
    #[pyo3(signature = (*, step=None, evaluation=None))]
    fn episodes<'py>(
        &self,
        py: Python<'py>,
        step: Option<u64>,
        evaluation: Option<String>,
    ) -> PyResult<Bound<'py, PyList>> {
        let file = match (step, evaluation) {
            (Some(step), None) => EpisodeFile::Step(step),
            (None, Some(name)) => EpisodeFile::Evaluation(name),
            _ => return Err(PyValueError::new_err("name one step or one evaluation")),
        };
        let read = py.detach(|| self.files.episodes(&file));
        let (episodes, _) = read.map_err(|error| PyValueError::new_err(chain(&error)))?;
        list(py, &episodes)
    }
}

/// Reads episodes from lines of JSON.
#[pyfunction]
pub(crate) fn read_episodes<'py>(py: Python<'py>, lines: &str) -> PyResult<Bound<'py, PyList>> {
    let episodes: Result<Vec<_>, _> =
        lines.lines().filter(|line| !line.trim().is_empty()).map(read_line).collect();
    list(py, &episodes.map_err(|error| PyValueError::new_err(chain(&error)))?)
}

fn list<'py>(py: Python<'py>, episodes: &[Trajectory]) -> PyResult<Bound<'py, PyList>> {
    let episodes: PyResult<Vec<_>> =
        episodes.iter().map(|episode| of_episode(py, episode)).collect();
    PyList::new(py, episodes?)
}

fn of_episode<'py>(py: Python<'py>, episode: &Trajectory) -> PyResult<Bound<'py, PyDict>> {
    let fields = PyDict::new(py);
    let fault = match &episode.outcome {
        Outcome::InfraFault(fault) => Some(fault.to_string()),
        _ => None,
    };
    let record = json!({
        "identity": episode.identity,
        "outcome": episode.outcome.label(),
        "fault": fault,
        "solved": episode.solved,
        "reward": episode.reward(),
        "seat": episode.seat,
        "messages": episode.messages(),
        "sampling": episode.sampling,
    });
    fields.set_item("record", record.to_string())?;
    let turns: PyResult<Vec<_>> =
        episode.turns.iter().map(|turn| of_turn(py, episode, turn)).collect();
    fields.set_item("turns", PyList::new(py, turns?)?)?;
    Ok(fields)
}

fn of_turn<'py>(
    py: Python<'py>,
    episode: &Trajectory,
    turn: &Turn,
) -> PyResult<Bound<'py, PyDict>> {
    let (fields, node) = (PyDict::new(py), episode.graph.node(turn.node));
    let record = json!({
        "message": node.message,
        "stop": turn.stop,
        "reward": turn.reward,
        "score": turn.score.as_ref().and_then(|score| score.value),
        "penalty": turn.penalty,
        "faults": turn.faults,
        "seconds": turn.seconds,
        "engine": turn.engine,
    });
    fields.set_item("record", record.to_string())?;
    let tokens: Vec<SampledToken> = node.sampled().collect();
    let of = |number: fn(&SampledToken) -> f32| tokens.iter().map(number).collect::<Vec<f32>>();
    let ids: Vec<TokenId> = tokens.iter().map(|token| token.id).collect();
    let versions: Vec<u64> = tokens.iter().map(|token| token.version.0.into()).collect();
    let trains: Vec<u8> = tokens.iter().map(|token| u8::from(token.trains())).collect();
    fields.set_item("prompt", column(py, &prompt(episode, turn)))?;
    fields.set_item("ids", column(py, &ids))?;
    fields.set_item("logprobs", column(py, &of(|token| token.logprob)))?;
    fields.set_item("advantages", column(py, &of(|token| token.advantage.unwrap_or(f32::NAN))))?;
    fields.set_item("versions", column(py, &versions))?;
    fields.set_item("trains", column(py, &trains))?;
    Ok(fields)
}

/// Returns all ids before the first sampled token of a turn.
fn prompt(episode: &Trajectory, turn: &Turn) -> Vec<TokenId> {
    let node = episode.graph.node(turn.node);
    let mut ids = node.parent.map_or_else(Vec::new, |parent| episode.graph.ids_to(parent));
    for span in node.spans.iter().take_while(|span| !matches!(span, Span::Sampled(_))) {
        span.extend_ids(&mut ids);
    }
    ids
}
