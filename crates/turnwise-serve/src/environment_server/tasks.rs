//! Tasks as a client names them.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use turnwise_environment::{Split, Suite};

use super::refused::{Refused, read};

type SuiteState = State<Arc<Suite>>;

/// Makes the route that names the environment.
pub(super) fn list(suite: &Suite) -> Router {
    let names = json!([suite.name()]);
    Router::new().route("/list_environments", get(|| async { Json(names) }))
}

/// Makes the routes of an environment's tasks.
pub(super) fn router(suite: &Suite) -> Router {
    Router::new()
        .route("/splits", get(splits))
        .route("/tasks", post(tasks))
        .route("/num_tasks", post(num_tasks))
        .route("/task", post(task))
        .route("/task_range", post(task_range))
        .with_state(Arc::new(suite.clone()))
}

/// A split by its name on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum SplitName {
    #[default]
    Train,
    #[serde(alias = "validation")]
    Test,
}

impl SplitName {
    pub(super) fn split(self) -> Split {
        match self {
            Self::Train => Split::Train,
            Self::Test => Split::HeldOut,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }
}

/// A task, as the server describes it and a client sends it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct TaskSpec {
    pub(super) id: usize,
    #[serde(default)]
    pub(super) split: SplitName,
    /// The seed of the episode; by default the same for all episodes of a task.
    #[serde(default)]
    pub(super) seed: Option<u64>,
}

impl TaskSpec {
    pub(super) fn to_json(self) -> Value {
        json!({"id": self.id, "split": self.split.name()})
    }
}

/// Returns the tasks of a range, cut to those there are.
fn range(suite: &Suite, split: SplitName, start: usize, stop: usize) -> Vec<Value> {
    let stop = stop.min(suite.tasks(split.split()).len());
    (start..stop).map(|id| TaskSpec { id, split, seed: None }.to_json()).collect()
}

async fn splits() -> Json<Value> {
    Json(json!([{"name": "train", "type": "train"}, {"name": "test", "type": "test"}]))
}

/// A question for tasks.
#[derive(Debug, Deserialize)]
struct TaskQuery {
    #[serde(default)]
    split: SplitName,
    #[serde(default)]
    index: usize,
    #[serde(default)]
    start: Option<usize>,
    #[serde(default)]
    stop: Option<usize>,
}

async fn tasks(State(suite): SuiteState, body: Bytes) -> Result<Json<Value>, Refused> {
    let TaskQuery { split, .. } = read(&body)?;
    let tasks = range(&suite, split, 0, usize::MAX);
    Ok(Json(json!({"tasks": tasks, "env_name": suite.name()})))
}

async fn num_tasks(State(suite): SuiteState, body: Bytes) -> Result<Json<Value>, Refused> {
    let TaskQuery { split, .. } = read(&body)?;
    Ok(Json(json!({"num_tasks": suite.tasks(split.split()).len()})))
}

async fn task(State(suite): SuiteState, body: Bytes) -> Result<Json<Value>, Refused> {
    let TaskQuery { split, index, .. } = read(&body)?;
    if index >= suite.tasks(split.split()).len() {
        return Err(Refused::bad("Invalid task index"));
    }
    let task = TaskSpec { id: index, split, seed: None }.to_json();
    Ok(Json(json!({"task": task, "env_name": suite.name()})))
}

async fn task_range(State(suite): SuiteState, body: Bytes) -> Result<Json<Value>, Refused> {
    let TaskQuery { split, start, stop, .. } = read(&body)?;
    let (start, stop) = (start.unwrap_or(0), stop.unwrap_or(usize::MAX));
    let tasks = range(&suite, split, start, stop);
    Ok(Json(json!({"tasks": tasks, "env_name": suite.name()})))
}
