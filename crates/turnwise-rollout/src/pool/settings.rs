use std::time::Duration;

use crate::Limits;

/// How groups are run.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolSettings {
    /// Rollouts of one task.
    pub group_size: usize,
    /// A group with fewer scored members is dropped whole.
    pub min_group_size: usize,
    /// Episodes that run at the same time.
    pub max_concurrent: usize,
    /// Tokens that one iteration may draw over all its episodes; each gets an equal share, and suspends when it is used up.
    /// `None` lets every episode finish. Episodes that run in the background know no iterations, and no such budget.
    pub tokens_per_iteration: Option<u64>,
    /// Wall time after which the episodes of an iteration suspend, in seconds. With it, who is cut where depends on the
    /// machine.
    pub seconds_per_iteration: Option<f64>,
    /// New attempts at an episode that broke.
    pub max_retries: u32,
    /// How long the first new attempt waits, in seconds; every further one twice as long, and each a random part of that.
    pub retry_delay_s: f64,
    /// This many infrastructure faults in a row stop the run.
    pub max_faults_in_row: u32,
    /// More than this share of bad rewards among the attempts of about one batch stops the run (a single one never does).
    pub max_bad_rewards: f64,
    /// How long a rubric may take over a group, in seconds.
    pub rubric_timeout_s: f64,
    /// What an episode may use.
    pub limits: Limits,
}

impl Default for PoolSettings {
    /// Groups of 8 of which 2 must be scored, no token budget, and the retries and breakers of the fault table.
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
    /// The tokens each of `n` episodes may draw. Equal shares, fixed before anything runs: who is cut where does then not
    /// depend on who is faster.
    pub(super) fn share(&self, n: usize) -> u64 {
        self.tokens_per_iteration.map_or(u64::MAX, |tokens| (tokens / n.max(1) as u64).max(1))
    }

    /// How long attempt number `attempt` waits; `uniform` spreads those that broke together.
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
