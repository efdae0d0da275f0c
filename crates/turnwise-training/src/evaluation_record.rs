use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use turnwise_environment::{Seat, TaskKey};
use turnwise_trajectory::{GroupId, Trajectory};

use crate::{Evaluation, SuccessDifference, SuccessRate};

/// An evaluation as a run keeps it, in `eval-WHEN.json`: the success, and the score of every episode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// The share of solved episodes.
    #[serde(flatten)]
    pub success: SuccessRate,
    /// The number of tasks that there are; `None` in a run of an earlier version.
    #[serde(default)]
    pub tasks: Option<usize>,
    /// The scores in the order of the episodes; empty if the run did not keep them.
    #[serde(default)]
    pub scores: Vec<EpisodeScore>,
}

/// The score of an episode of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpisodeScore {
    /// The number of the episode: evaluations with the same settings have the same episodes.
    pub episode: GroupId,
    /// The seat of the trajectory.
    #[serde(default, skip_serializing_if = "Seat::is_first")]
    pub seat: Seat,
    /// The content key of the task.
    pub task: TaskKey,
    /// Whether the task was solved.
    pub solved: bool,
    /// The sum of the rewards, if the episode was scored.
    pub reward: Option<f64>,
}

/// The share of the episodes that must be in both evaluations for a comparison by pairs.
const PAIRED: f64 = 0.9;

impl EvaluationRecord {
    /// Returns the change from this evaluation to a later one. The episodes are compared in pairs if both evaluations
    /// have at least nine tenths of them, and as two independent samples otherwise.
    #[must_use]
    pub fn change_to(&self, after: &Self) -> SuccessDifference {
        let key = |score: &EpisodeScore| (score.episode, score.seat, score.task.clone());
        let later: BTreeMap<_, bool> =
            after.scores.iter().map(|score| (key(score), score.solved)).collect();
        let mut tasks: BTreeMap<&TaskKey, Vec<(bool, bool)>> = BTreeMap::new();
        let mut n_pairs = 0;
        for score in &self.scores {
            if let Some(solved) = later.get(&key(score)) {
                tasks.entry(&score.task).or_default().push((score.solved, *solved));
                n_pairs += 1;
            }
        }
        let n_episodes = self.success.episodes.max(after.success.episodes);
        if n_pairs > 0 && f64::from(n_pairs) >= PAIRED * n_episodes as f64 {
            return SuccessDifference::paired(&tasks.into_values().collect::<Vec<_>>());
        }
        SuccessDifference::independent(&self.success, &after.success)
    }
}

impl From<&Evaluation> for EvaluationRecord {
    fn from(evaluation: &Evaluation) -> Self {
        let score = |trajectory: &Trajectory| EpisodeScore {
            episode: trajectory.identity.group,
            seat: trajectory.seat,
            task: trajectory.identity.task.clone(),
            solved: trajectory.solved,
            reward: trajectory.reward(),
        };
        Self {
            success: evaluation.success,
            tasks: Some(evaluation.n_tasks),
            scores: evaluation.trajectories.iter().map(score).collect(),
        }
    }
}
