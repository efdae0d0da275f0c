use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{EnvironmentError, Message, TaskKey};

/// A rubric's view of an episode: its messages and rewards, without tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transcript {
    /// The key of the task.
    pub task: TaskKey,
    /// All messages, oldest first.
    pub messages: Vec<Message>,
    /// The environment's reward of each turn; `None` where it did not score the turn.
    pub rewards: Vec<Option<f64>>,
}

/// Scores the finished episodes of one group: a grader, a judge model, a comparison of the group's members.
///
/// # Contract
///
/// - A rubric sees only episodes that can be scored (without infrastructure faults, and not cancelled), in member
///   order, and returns one score for each.
/// - `None` means *not scored*; it is never read as 0. An episode that neither environment nor rubric scores is an
///   infrastructure fault.
/// - Scores are finite and are added to the reward of the last turn.
/// - Pure: equal transcripts give equal scores, so that stored episodes can be scored again.
///
/// # Example
///
/// ```
/// use turnwise_environment::{EnvironmentError, Role, Rubric, Transcript, async_trait};
///
/// /// Gives the shortest final answer of a group 0.1, and the others nothing.
/// struct Brevity;
///
/// #[async_trait]
/// impl Rubric for Brevity {
///     fn name(&self) -> &str {
///         "brevity"
///     }
///
///     async fn score(&self, group: &[Transcript]) -> Result<Vec<Option<f64>>, EnvironmentError> {
///         let length = |one: &Transcript| {
///             let answer = one.messages.iter().rfind(|said| said.role == Role::Assistant);
///             answer.map(|said| said.content.len())
///         };
///         let shortest = group.iter().filter_map(length).min();
///         let score = |one| Some(if length(one) == shortest { 0.1 } else { 0.0 });
///         Ok(group.iter().map(score).collect())
///     }
/// }
/// ```
///
/// [`Suite::rubric`](crate::Suite::rubric) adds a rubric to an environment.
#[async_trait]
pub trait Rubric: Send + Sync {
    /// Returns the rubric's name in records.
    fn name(&self) -> &str;

    /// Scores the episodes of one group.
    ///
    /// # Errors
    /// When the rubric itself is broken; the group is then dropped and counted.
    async fn score(&self, group: &[Transcript]) -> Result<Vec<Option<f64>>, EnvironmentError>;
}
