//! Tasks that a server names.

use std::sync::Arc;

use serde_json::json;
use turnwise_environment::{Environment, EnvironmentError, TaskKey, TaskSet};

/// The most tasks of a split: a list of all their numbers is kept.
const MAX_TASKS: u64 = 10_000_000;

/// A task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RemoteTask {
    /// By its place in a split.
    OfSplit {
        /// The name of the split.
        split: String,
        /// The place.
        index: u64,
    },
    /// By a seed, where the server knows no tasks.
    Seed(u64),
}

/// Tasks that follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TaskRange {
    /// The split; `None` for seeds.
    split: Option<String>,
    first: u64,
    n: usize,
}

impl TaskRange {
    /// Creates the tasks of a split from `first` on.
    pub(super) fn of_split(split: String, first: u64, n: u64) -> Result<Self, EnvironmentError> {
        if n == 0 {
            return Err(EnvironmentError::new(
                "the server has too few tasks: training and evaluation need one each",
            ));
        }
        if n > MAX_TASKS {
            return Err(EnvironmentError::new(format!(
                "the server says that it has {n} tasks, more than {MAX_TASKS}; set `tasks` and `held_out` to use the first of them"
            )));
        }
        Ok(Self { split: Some(split), first, n: usize::try_from(n).unwrap_or(usize::MAX) })
    }

    /// Creates tasks that are seeds.
    pub(super) fn of_seeds(first: usize, n: usize) -> Result<Self, EnvironmentError> {
        if n == 0 || n as u64 > MAX_TASKS {
            return Err(EnvironmentError::new(format!(
                "`tasks` and `held_out` lie from 1 to {MAX_TASKS}"
            )));
        }
        Ok(Self { split: None, first: first as u64, n })
    }

    pub(super) fn task(&self, index: usize) -> RemoteTask {
        let index = self.first + index as u64;
        match &self.split {
            Some(split) => RemoteTask::OfSplit { split: split.clone(), index },
            None => RemoteTask::Seed(index),
        }
    }
}

/// A server that makes environments of tasks.
pub(super) trait RemoteServer: Send + Sync {
    /// Returns the protocol's name, which is that of the task set.
    fn protocol(&self) -> &'static str;

    /// Returns the environment's name at the server.
    fn environment_name(&self) -> &str;

    /// Returns a fresh environment.
    fn environment(self: Arc<Self>, task: RemoteTask) -> Box<dyn Environment>;
}

/// Tasks of a server, by their numbers.
pub(super) struct RemoteTasks<S> {
    pub(super) server: Arc<S>,
    pub(super) range: TaskRange,
}

impl<S: RemoteServer> TaskSet for RemoteTasks<S> {
    fn name(&self) -> &str {
        self.server.protocol()
    }

    fn len(&self) -> usize {
        self.range.n
    }

    fn key(&self, index: usize) -> TaskKey {
        let of = [self.server.protocol(), self.server.environment_name()];
        let content = match self.range.task(index) {
            RemoteTask::OfSplit { split, index } => json!([of, split, index]),
            RemoteTask::Seed(seed) => json!([of, seed]),
        };
        TaskKey::of(&content.to_string())
    }

    fn environment(&self, index: usize) -> Box<dyn Environment> {
        self.server.clone().environment(self.range.task(index))
    }
}
