//! The usual parts of a test: agents that speak letters, limits, tasks, an objective and a credit.

use std::sync::Arc;

use turnwise_environment::{TaskSet, derive_seed};
use turnwise_objective::{Clip, GroupAdvantage, GspoToken, LengthWeight, Std};
use turnwise_rollout::{ChatAgents, Limits, PoolSettings};
use turnwise_training::OutcomeCredit;
use turnwise_trajectory::{GroupId, Identity, Sampling};

use crate::{AlphabetRenderer, Echo};

/// A credit that compares whole episodes.
pub const OUTCOME: OutcomeCredit =
    OutcomeCredit { advantage: GroupAdvantage::MeanStd { std: Std::Sample, epsilon: 1e-6 } };

/// The objective of the paper, with a wide clip range, so that a test depends on clipping only if it says so.
pub const OBJECTIVE: GspoToken =
    GspoToken { clip: Clip::PAPER_GRPO, length_weight: LengthWeight::Mean };

/// The letters that the agents speak.
pub const LETTERS: &str = "abc";

/// Returns agents that speak [`LETTERS`].
#[must_use]
pub fn agents() -> ChatAgents {
    agents_with(LETTERS, Sampling::default())
}

/// Returns agents that speak these letters, with these sampling settings.
#[must_use]
pub fn agents_with(letters: &str, sampling: Sampling) -> ChatAgents {
    ChatAgents { sampling, ..ChatAgents::new(Arc::new(AlphabetRenderer::new(letters))) }
}

/// Returns limits with turns of at most six tokens.
#[must_use]
pub fn limits() -> Limits {
    Limits { max_turn_tokens: 6, ..Limits::default() }
}

/// Returns the settings of a pool with groups of four that bad rewards do not stop.
#[must_use]
pub fn pool_settings() -> PoolSettings {
    PoolSettings {
        group_size: 4,
        max_bad_rewards: 1.0,
        limits: limits(),
        ..PoolSettings::default()
    }
}

/// Returns echoes of 1 to `n` turns.
#[must_use]
pub fn echoes(n: usize, has_snapshots: bool) -> Vec<Echo> {
    (1..=n).map(|turns| Echo::new(turns, has_snapshots)).collect()
}

/// Returns the identity of an episode of a task, with seeds that derive from `seed`.
#[must_use]
pub fn identity(tasks: &dyn TaskSet, task_index: usize, seed: u64) -> Identity {
    Identity {
        environment: tasks.name().to_owned(),
        environment_version: tasks.version(),
        task: tasks.key(task_index),
        task_index,
        group: GroupId(0),
        member: 0,
        attempt: 0,
        environment_seed: derive_seed(seed, 0),
        sampling_seed: derive_seed(seed, 1),
    }
}
