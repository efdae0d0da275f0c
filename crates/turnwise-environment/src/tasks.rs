use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Environment, EnvironmentError, TaskKey, TaskSet};

/// Tasks that are data, with a function that makes the environment of one of them.
///
/// The content of a task identifies it: the key is the hash of its serialised form, and the first of several equal
/// tasks stays.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use turnwise_environment::{
///     Action, Environment, EnvironmentError, Observation, Step, Suite, Tasks, async_trait,
/// };
///
/// #[derive(Clone, Serialize, Deserialize)]
/// struct Question {
///     question: String,
///     answer: String,
/// }
///
/// struct Quiz(Question);
///
/// #[async_trait]
/// impl Environment for Quiz {
///     async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
///         Ok(self.0.question.clone().into())
///     }
///
///     async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
///         Ok(Step::terminated(f64::from(u8::from(action.text.trim() == self.0.answer))))
///     }
/// }
///
/// # fn main() -> Result<(), EnvironmentError> {
/// let folder = tempfile::tempdir().expect("a folder");
/// let path = folder.path().join("questions.jsonl");
/// std::fs::write(&path, "{\"question\": \"2 + 2?\", \"answer\": \"4\"}\n").expect("written");
/// let tasks = Tasks::from_jsonl(&path, |question: &Question| Quiz(question.clone()))?;
/// let suite = Suite::divided("quiz", tasks, 0.1);
/// # Ok(())
/// # }
/// ```
pub struct Tasks<T> {
    keyed: Vec<(TaskKey, T)>,
    version: u32,
    make: Box<Make<T>>,
}

/// Makes the environment of a task.
type Make<T> = dyn Fn(&T) -> Box<dyn Environment> + Send + Sync;

impl<T: Serialize> Tasks<T> {
    /// Creates a task set from an iterator.
    ///
    /// # Panics
    /// When a task cannot be serialised as JSON, for example a map whose keys are not strings.
    #[must_use]
    pub fn new<E: Environment + 'static>(
        tasks: impl IntoIterator<Item = T>,
        make: impl Fn(&T) -> E + Send + Sync + 'static,
    ) -> Self {
        let mut seen = HashSet::new();
        let keyed = tasks.into_iter().map(|task| {
            let content = serde_json::to_string(&task).expect("a task can be serialised as JSON");
            (TaskKey::of(&content), task)
        });
        let keyed = keyed.filter(|(key, _)| seen.insert(key.clone())).collect();
        Self { keyed, version: 1, make: Box::new(move |task| Box::new(make(task))) }
    }

    /// Reads a file with one task on each line, as JSON. Blank lines are skipped.
    ///
    /// # Errors
    /// When the file cannot be read, or a line is not a task; the error names the line.
    pub fn from_jsonl<E: Environment + 'static>(
        path: &Path,
        make: impl Fn(&T) -> E + Send + Sync + 'static,
    ) -> Result<Self, EnvironmentError>
    where
        T: DeserializeOwned,
    {
        let shown = path.display();
        let text = fs::read_to_string(path).map_err(|error| {
            EnvironmentError::new(format!("cannot read {shown}")).caused_by(error)
        })?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let tasks = lines.map(|(index, line)| {
            serde_json::from_str(line).map_err(|error| {
                let what = format!("cannot read the task in line {} of {shown}", index + 1);
                EnvironmentError::new(what).caused_by(error)
            })
        });
        Ok(Self::new(tasks.collect::<Result<Vec<T>, _>>()?, make))
    }

    /// Sets the version of rules and texts; by default 1.
    #[must_use]
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }
}

impl<T: Send + Sync> TaskSet for Tasks<T> {
    fn name(&self) -> &'static str {
        "tasks"
    }

    fn version(&self) -> u32 {
        self.version
    }

    fn len(&self) -> usize {
        self.keyed.len()
    }

    fn key(&self, index: usize) -> TaskKey {
        self.keyed[index].0.clone()
    }

    fn environment(&self, index: usize) -> Box<dyn Environment> {
        (self.make)(&self.keyed[index].1)
    }
}

impl<T> fmt::Debug for Tasks<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Tasks").field("len", &self.keyed.len()).finish_non_exhaustive()
    }
}
