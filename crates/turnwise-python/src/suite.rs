//! A suite whose environments and players are in Python.

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use turnwise_environment::{Environment, Split, Suite, TaskKey, TaskSet, ToolSpec};

use crate::environment::PythonEnvironment;
use crate::failure::broken;
use crate::player::{PythonPlayer, Raised};

/// The tasks of an environment in Python: the object behind them, and the content of each.
#[derive(Clone)]
struct PythonTasks {
    adapter: Arc<Py<PyAny>>,
    tools: Arc<Vec<ToolSpec>>,
    raised: Raised,
    contents: Arc<Vec<String>>,
    /// The index of the first task among all that the adapter knows.
    first: usize,
}

impl TaskSet for PythonTasks {
    fn name(&self) -> &'static str {
        "python"
    }

    fn len(&self) -> usize {
        self.contents.len()
    }

    fn key(&self, index: usize) -> TaskKey {
        TaskKey::of(&self.contents[index])
    }

    fn environment(&self, index: usize) -> Box<dyn Environment> {
        let (adapter, task) = (self.adapter.clone(), self.first + index);
        Box::new(PythonEnvironment::new(self.tools.clone(), self.raised.clone(), move |py| {
            adapter.call_method1(py, "begin", (task,))
        }))
    }
}

/// Makes a suite of a `turnwise._suite.SuiteAdapter`.
pub(crate) fn suite(adapter: &Bound<'_, PyAny>, raised: &Raised) -> PyResult<Suite> {
    let text = |name: &str| -> PyResult<String> { adapter.getattr(name)?.extract() };
    let optional = |name: &str| -> PyResult<Option<String>> { adapter.getattr(name)?.extract() };
    let contents = |name: &str| -> PyResult<Vec<String>> { adapter.getattr(name)?.extract() };
    let tools: Vec<ToolSpec> =
        serde_json::from_str(&text("tools")?).map_err(|error| broken(&error))?;
    let (object, tools) = (Arc::new(adapter.clone().unbind()), Arc::new(tools));
    let tasks = |contents: Vec<String>, first: usize| PythonTasks {
        adapter: object.clone(),
        tools: tools.clone(),
        raised: raised.clone(),
        contents: Arc::new(contents),
        first,
    };
    let (train, held_out) = (contents("train")?, contents("held_out")?);
    let (n_train, share) = (train.len(), adapter.getattr("share")?.extract::<Option<f64>>()?);
    let mut suite = match share {
        Some(share) => divided(text("name")?, tasks(train, 0), share)?,
        None => Suite::new(text("name")?, tasks(train, 0), tasks(held_out, n_train)),
    };
    if let Some(description) = optional("description")? {
        suite = suite.description(description);
    }
    if let Some(instructions) = optional("instructions")? {
        suite = suite.instructions(instructions);
    }
    if let Some(max_turns) = adapter.getattr("max_turns")?.extract()? {
        suite = suite.max_turns(max_turns);
    }
    if adapter.getattr("has_expert")?.extract()? {
        suite = suite.expert(players("expert", object.clone(), raised.clone()));
    }
    if adapter.getattr("has_random")?.extract()? {
        suite = suite.random(players("random", object.clone(), raised.clone()));
    }
    Ok(suite)
}

/// Divides tasks by their content, and refuses a division without tasks on one side.
fn divided(name: String, tasks: PythonTasks, share: f64) -> PyResult<Suite> {
    let n = tasks.len();
    let suite = Suite::divided(name, tasks, share);
    let (train, held_out) = (suite.tasks(Split::Train).len(), suite.tasks(Split::HeldOut).len());
    if train > 0 && held_out > 0 {
        return Ok(suite);
    }
    Err(PyValueError::new_err(format!(
        "held_out={share} divides the {n} tasks into {train} to train on and {held_out} that are held out: give more tasks, or name those that are held out in a list"
    )))
}

/// Returns a function that makes the players of a kind from seeds.
fn players(
    kind: &'static str,
    adapter: Arc<Py<PyAny>>,
    raised: Raised,
) -> impl Fn(u64) -> PythonPlayer + Send + Sync {
    move |seed| {
        let adapter = adapter.clone();
        PythonPlayer::new(raised.clone(), move |py| {
            adapter.call_method1(py, "player", (kind, seed))
        })
    }
}
