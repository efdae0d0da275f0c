use std::sync::Arc;

use crate::{Demonstrator, TaskSet};

/// Which tasks: those that may be trained on, or those that never are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// For training.
    Train,
    /// For evaluation; no task of it is in `Train`.
    HeldOut,
}

/// An environment as a user names it: its tasks in two splits, an expert and a baseline.
///
/// # Contract
///
/// - The keys of `tasks(Split::Train)` and `tasks(Split::HeldOut)` have none in common, by construction.
/// - The expert solves tasks of both splits; the random player obeys the form of the environment and nothing else.
pub trait Suite: Send + Sync {
    /// The name on the command line and in records.
    fn name(&self) -> &str;

    /// One line for people.
    fn description(&self) -> &str;

    /// The tasks of a split.
    fn tasks(&self, split: Split) -> Arc<dyn TaskSet>;

    /// A player whose episodes are worth imitating at the start.
    fn expert(&self, seed: u64) -> Box<dyn Demonstrator>;

    /// A player that knows the form and not the skill.
    fn random(&self, seed: u64) -> Box<dyn Demonstrator>;

    /// The most turns an episode can take, for budgets.
    fn max_turns(&self) -> usize;
}
