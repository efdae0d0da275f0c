//! Tasks that the agent program knows itself.

use async_trait::async_trait;
use serde::Deserialize;
use turnwise_environment::{
    Action, Environment, EnvironmentError, Observation, Step, Suite, TaskKey, TaskSet,
};

/// How many tasks an agent program has of its own.
///
/// ```
/// use turnwise_environment::Split;
/// use turnwise_serve::{OwnTasks, own_tasks};
///
/// # fn main() -> Result<(), turnwise_environment::EnvironmentError> {
/// let suite = own_tasks(OwnTasks { tasks: 100, held_out: 20 })?;
/// assert_eq!(suite.tasks(Split::Train).len(), 100);
/// assert_eq!(suite.tasks(Split::HeldOut).len(), 20);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OwnTasks {
    /// The number of tasks to train on: those from 0.
    pub tasks: usize,
    /// The number of tasks for evaluation, which follow them.
    pub held_out: usize,
}

impl Default for OwnTasks {
    fn default() -> Self {
        Self { tasks: 1_000, held_out: 100 }
    }
}

/// Returns the suite `program`: numbered tasks of which the program finds the number in `TURNWISE_TASK`, and whose rewards it
/// gives itself, or a rubric does.
///
/// # Errors
/// If a split has no tasks.
pub fn own_tasks(settings: OwnTasks) -> Result<Suite, EnvironmentError> {
    let OwnTasks { tasks, held_out } = settings;
    if tasks == 0 || held_out == 0 {
        return Err(EnvironmentError::new(
            "cannot set up program: tasks and held_out are at least 1",
        ));
    }
    let train = Numbered { first: 0, n: tasks };
    let suite = Suite::new("program", train, Numbered { first: tasks, n: held_out });
    Ok(suite.description("the own tasks of an agent program").max_turns(1))
}

/// Tasks that are numbers.
struct Numbered {
    first: usize,
    n: usize,
}

impl TaskSet for Numbered {
    fn name(&self) -> &'static str {
        "program"
    }

    fn len(&self) -> usize {
        self.n
    }

    fn key(&self, index: usize) -> TaskKey {
        TaskKey::of(&format!("task {} of a program", self.first + index))
    }

    fn environment(&self, index: usize) -> Box<dyn Environment> {
        Box::new(NumberedTask(self.first + index))
    }
}

/// A task behind which no environment stands.
struct NumberedTask(usize);

#[async_trait]
impl Environment for NumberedTask {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        Ok(format!("Task {}", self.0).into())
    }

    async fn step(&mut self, _action: Action) -> Result<Step, EnvironmentError> {
        Ok(Step::terminated(0.0))
    }
}
