use std::fmt;
use std::sync::Arc;

use crate::{Demonstrator, Environment, Random, Rubric, TaskKey, TaskSet};

/// A part of a suite's tasks: those to train on, or those that are never trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// For training.
    Train,
    /// For evaluation; disjoint from `Train`.
    HeldOut,
}

/// An environment as a user names it: a name and its tasks in two splits. Everything else is optional.
///
/// ```
/// use turnwise_environment::{
///     Action, Environment, EnvironmentError, Observation, Split, Step, Suite, async_trait,
/// };
///
/// #[derive(Clone, Debug)]
/// struct Sum(u32, u32);
///
/// #[async_trait]
/// impl Environment for Sum {
///     async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
///         Ok(format!("What is {} + {}?", self.0, self.1).into())
///     }
///
///     async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
///         let right = action.text.trim() == (self.0 + self.1).to_string();
///         Ok(Step::terminated(f64::from(u8::from(right))))
///     }
/// }
///
/// let sums = (0..20).flat_map(|a| (0..20).map(move |b| Sum(a, b)));
/// let suite = Suite::divided("sums", sums.collect::<Vec<_>>(), 0.25).description("add two numbers");
/// assert_eq!(suite.tasks(Split::Train).len() + suite.tasks(Split::HeldOut).len(), 400);
/// ```
///
/// # Contract
///
/// - The two splits have no key in common. [`Suite::divided`] ensures it.
/// - An expert solves tasks of both splits; a random player obeys the form of the environment and nothing else.
#[derive(Clone)]
pub struct Suite {
    name: String,
    description: String,
    instructions: Option<String>,
    train: Arc<dyn TaskSet>,
    held_out: Arc<dyn TaskSet>,
    expert: Option<Arc<Players>>,
    random: Option<Arc<Players>>,
    max_turns: Option<usize>,
    rubrics: Vec<Arc<dyn Rubric>>,
}

/// Makes a player from a seed.
type Players = dyn Fn(u64) -> Box<dyn Demonstrator> + Send + Sync;

impl Suite {
    /// Creates a suite of two task sets that have no task in common.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        train: impl TaskSet + 'static,
        held_out: impl TaskSet + 'static,
    ) -> Self {
        Self::of(name.into(), Arc::new(train), Arc::new(held_out))
    }

    /// Creates a suite of one task set and keeps a fraction of about `held_out` for evaluation. The key of a task
    /// decides, so that a task stays in its split when others are added.
    ///
    /// # Panics
    /// When `held_out` does not lie between 0 and 1.
    #[must_use]
    pub fn divided(name: impl Into<String>, tasks: impl TaskSet + 'static, held_out: f64) -> Self {
        assert!(
            held_out > 0.0 && held_out < 1.0,
            "the share {held_out} does not lie between 0 and 1"
        );
        let tasks: Arc<dyn TaskSet> = Arc::new(tasks);
        let (kept, train): (Vec<_>, Vec<_>) =
            (0..tasks.len()).partition(|index| share_of(&tasks.key(*index)) < held_out);
        let subset = |indices| Arc::new(Subset { tasks: tasks.clone(), indices });
        Self::of(name.into(), subset(train), subset(kept))
    }

    fn of(name: String, train: Arc<dyn TaskSet>, held_out: Arc<dyn TaskSet>) -> Self {
        let named = |tasks| Arc::new(Named { name: name.clone(), tasks });
        Self {
            train: named(train),
            held_out: named(held_out),
            description: name.clone(),
            instructions: None,
            name,
            expert: None,
            random: None,
            max_turns: None,
            rubrics: Vec::new(),
        }
    }

    /// Sets a line about the suite for people; by default the name.
    #[must_use]
    pub fn description(mut self, description: impl Into<String>) -> Self {
        self.description = description.into();
        self
    }

    /// Sets instructions for a chat model: what the task is, and in which form it answers. A run with a trained model
    /// gives them as a system prompt. A small model that the run makes itself learns both from demonstrations, and reads
    /// the shorter prompts without them.
    #[must_use]
    pub fn instructions(mut self, instructions: impl Into<String>) -> Self {
        self.instructions = Some(instructions.into());
        self
    }

    /// Sets a player whose episodes are worth imitating, made from a seed. A warm start needs one.
    #[must_use]
    pub fn expert<D: Demonstrator + 'static>(
        mut self,
        expert: impl Fn(u64) -> D + Send + Sync + 'static,
    ) -> Self {
        self.expert = Some(Arc::new(move |seed| Box::new(expert(seed))));
        self
    }

    /// Sets a player that knows the form but not the skill, made from a seed: a baseline to compare with.
    #[must_use]
    pub fn random<D: Demonstrator + 'static>(
        mut self,
        random: impl Fn(u64) -> D + Send + Sync + 'static,
    ) -> Self {
        self.random = Some(Arc::new(move |seed| Box::new(random(seed))));
        self
    }

    /// Sets the most turns that an episode can take, for checks and players; the environment must end the episode by
    /// then.
    #[must_use]
    pub fn max_turns(mut self, max_turns: usize) -> Self {
        self.max_turns = Some(max_turns);
        self
    }

    /// Adds a rubric. A run scores its episodes with the rubric that `environment.rubric` names, by default the first.
    ///
    /// # Panics
    /// When another rubric has the same name.
    #[must_use]
    pub fn rubric(mut self, rubric: impl Rubric + 'static) -> Self {
        let is_new = self.rubrics.iter().all(|other| other.name() != rubric.name());
        assert!(is_new, "two rubrics are called {}", rubric.name());
        self.rubrics.push(Arc::new(rubric));
        self
    }

    /// Returns the name on the command line and in records.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the line for people.
    #[must_use]
    pub fn about(&self) -> &str {
        &self.description
    }

    /// Returns the instructions for a chat model, if the suite has any.
    #[must_use]
    pub fn instructions_text(&self) -> Option<&str> {
        self.instructions.as_deref()
    }

    /// Returns the tasks of a split.
    #[must_use]
    pub fn tasks(&self, split: Split) -> Arc<dyn TaskSet> {
        match split {
            Split::Train => self.train.clone(),
            Split::HeldOut => self.held_out.clone(),
        }
    }

    /// Makes the player whose episodes are worth imitating, if the suite has one.
    #[must_use]
    pub fn make_expert(&self, seed: u64) -> Option<Box<dyn Demonstrator>> {
        self.expert.as_ref().map(|make| make(seed))
    }

    /// Makes the player that knows the form but not the skill, if the suite has one.
    #[must_use]
    pub fn make_random(&self, seed: u64) -> Option<Box<dyn Demonstrator>> {
        self.random.as_ref().map(|make| make(seed))
    }

    /// Returns the most turns that an episode can take, if it is known.
    #[must_use]
    pub fn turn_limit(&self) -> Option<usize> {
        self.max_turns
    }

    /// Returns the rubrics, in the order in which they were added.
    #[must_use]
    pub fn rubrics(&self) -> &[Arc<dyn Rubric>] {
        &self.rubrics
    }
}

impl fmt::Debug for Suite {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Suite")
            .field("name", &self.name)
            .field("train", &self.train.len())
            .field("held_out", &self.held_out.len())
            .finish_non_exhaustive()
    }
}

/// Returns a number in `[0, 1)` that depends on the task alone.
fn share_of(key: &TaskKey) -> f64 {
    let number = u128::from_str_radix(key.as_str(), 16).expect("a key is of hexadecimal digits");
    // Similar tasks have similar keys, because their hash does not mix the last characters into every bit.
    Random::new((number ^ (number >> 64)) as u64).uniform()
}

/// Some tasks of a task set.
struct Subset {
    tasks: Arc<dyn TaskSet>,
    indices: Vec<usize>,
}

#[deny(clippy::missing_trait_methods)]
impl TaskSet for Subset {
    fn name(&self) -> &str {
        self.tasks.name()
    }

    fn version(&self) -> u32 {
        self.tasks.version()
    }

    fn len(&self) -> usize {
        self.indices.len()
    }

    fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    fn key(&self, index: usize) -> TaskKey {
        self.tasks.key(self.indices[index])
    }

    fn environment(&self, index: usize) -> Box<dyn Environment> {
        self.tasks.environment(self.indices[index])
    }
}

/// A task set under the name of its suite.
struct Named {
    name: String,
    tasks: Arc<dyn TaskSet>,
}

#[deny(clippy::missing_trait_methods)]
impl TaskSet for Named {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> u32 {
        self.tasks.version()
    }

    fn len(&self) -> usize {
        self.tasks.len()
    }

    fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    fn key(&self, index: usize) -> TaskKey {
        self.tasks.key(index)
    }

    fn environment(&self, index: usize) -> Box<dyn Environment> {
        self.tasks.environment(index)
    }
}
