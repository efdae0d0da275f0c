use std::time::Duration;

use crate::Limits;

/// The settings of a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolSettings {
    /// Number of episodes of one group.
    pub group_size: usize,
    /// Minimal number of scored members; a group with fewer is dropped whole.
    pub min_group_size: usize,
    /// Maximal number of episodes that run at the same time.
    pub max_concurrent: usize,
    /// Tokens that one iteration may sample over all its episodes; each episode gets an equal share, and suspends when
    /// it is used up. `None` lets every episode finish. Episodes in the background have no iterations, and no such
    /// budget.
    pub tokens_per_iteration: Option<u64>,
    /// Wall time after which the episodes of an iteration suspend, in seconds. With this setting, the token at which an
    /// episode is cut depends on the machine.
    pub seconds_per_iteration: Option<f64>,
    /// Maximal number of new attempts at a broken episode.
    pub max_retries: u32,
    /// Delay of the first new attempt in seconds; it doubles with each further attempt, and each waits a random part of
    /// it.
    pub retry_delay_s: f64,
    /// Number of infrastructure faults in a row that stops the run.
    pub max_faults_in_row: u32,
    /// The share of bad rewards among the attempts of about one batch above which the run stops (a single one never
    /// does).
    pub max_bad_rewards: f64,
    /// Deadline of a rubric for one group, in seconds.
    pub rubric_timeout_s: f64,
    /// The limits of an episode.
    pub limits: Limits,
}

impl Default for PoolSettings {
    /// Returns groups of 8 with at least 2 scored members, no token budget, and the retries and breakers of the fault
    /// table.
    fn default() -> Self {
        Self {
            group_size: 8,
            min_group_size: 2,
            max_concurrent: 256,
            tokens_per_iteration: None,
            seconds_per_iteration: None,
            max_retries: 2,
            retry_delay_s: 0.1,
            max_faults_in_row: 20,
            max_bad_rewards: 0.01,
            rubric_timeout_s: 60.0,
            limits: Limits::default(),
        }
    }
}

impl PoolSettings {
    /// Returns the number of tokens that each of `n` episodes may sample. The shares are equal and fixed in advance, so
    /// that an episode's speed does not decide where it is cut.
    pub(super) fn share(&self, n: usize) -> u64 {
        self.tokens_per_iteration.map_or(u64::MAX, |tokens| (tokens / n.max(1) as u64).max(1))
    }

    /// Returns the delay of attempt number `attempt`; `uniform` spreads episodes that broke together.
    pub(super) fn retry_delay(&self, attempt: u32, uniform: f64) -> Duration {
        let longest = self.retry_delay_s * f64::from(1_u32 << attempt.saturating_sub(1).min(16));
        Duration::try_from_secs_f64(longest * (0.5 + 0.5 * uniform)).unwrap_or_default()
    }

    pub(super) fn iteration_timeout(&self) -> Duration {
        self.seconds_per_iteration
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .unwrap_or(Duration::MAX)
    }

    pub(super) fn rubric_timeout(&self) -> Duration {
        Duration::try_from_secs_f64(self.rubric_timeout_s).unwrap_or(Duration::MAX)
    }
}
