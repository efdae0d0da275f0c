//! The tasks of agent programs.

use std::fmt;
use std::sync::Arc;

use tokio::sync::Semaphore;
use turnwise_environment::{Environment, TaskKey, TaskSet};
use turnwise_rollout::Preface;

use super::environment::ProgramEnvironment;
use crate::Gateway;

/// How agent programs run.
#[derive(Clone, Debug, PartialEq)]
pub struct ProgramSettings {
    /// The command line, for `sh`.
    pub command: String,
    /// The most processes at a time. An episode keeps its process while it is suspended, so there must be more than run
    /// side by side.
    pub max_processes: usize,
    /// What stands before the environment's first messages at `/task`.
    pub preface: Preface,
    /// The number of the first task, so that a program can tell the tasks of two sets apart.
    pub first_task: usize,
}

impl ProgramSettings {
    /// Returns settings for a command line: at most 64 processes, and tasks from 0.
    #[must_use]
    pub fn new(command: impl Into<String>) -> Self {
        let command = command.into();
        Self { command, max_processes: 64, preface: Preface::default(), first_task: 0 }
    }
}

/// The tasks of another set, each played by an agent program of its own: in the place of the environment's observations
/// and the policy's actions are the program's requests and their answers.
///
/// A program finds these variables in its environment:
///
/// | variable | value |
/// |---|---|
/// | `OPENAI_BASE_URL`, `OPENAI_API_KEY` | the endpoint, for clients of OpenAI |
/// | `ANTHROPIC_BASE_URL`, `ANTHROPIC_API_KEY` | the endpoint, for clients of Anthropic |
/// | `TURNWISE_SESSION` | the episode's own URL, with `/task`, `/step`, `/reward` and `/end` |
/// | `TURNWISE_TASK` | the number of the task; those for evaluation follow those of training |
/// | `TURNWISE_SEED` | the seed of the episode, equal for all members of a group |
///
/// An episode ends with its program, or when the program sends `/end`. An exit status other than 0 is a fault of the
/// infrastructure: such an episode has no reward and does not train.
#[derive(Clone)]
pub struct ProgramTasks {
    pub(super) inner: Arc<dyn TaskSet>,
    pub(super) gateway: Arc<Gateway>,
    pub(super) settings: Arc<ProgramSettings>,
    pub(super) processes: Arc<Semaphore>,
}

impl ProgramTasks {
    /// Wraps a task set.
    #[must_use]
    pub fn new(inner: Arc<dyn TaskSet>, gateway: Arc<Gateway>, settings: ProgramSettings) -> Self {
        let processes = Arc::new(Semaphore::new(settings.max_processes));
        Self { inner, gateway, settings: Arc::new(settings), processes }
    }
}

impl fmt::Debug for ProgramTasks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ProgramTasks")
            .field("settings", &self.settings)
            .field("gateway", &self.gateway)
            .finish_non_exhaustive()
    }
}

impl TaskSet for ProgramTasks {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn version(&self) -> u32 {
        self.inner.version()
    }

    fn len(&self) -> usize {
        self.inner.len()
    }

    fn key(&self, index: usize) -> TaskKey {
        self.inner.key(index)
    }

    fn environment(&self, index: usize) -> Box<dyn Environment> {
        Box::new(ProgramEnvironment::new(self.clone(), index))
    }
}
