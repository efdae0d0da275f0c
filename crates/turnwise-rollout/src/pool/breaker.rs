use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use turnwise_trajectory::{InfraFault, InfraReason, Outcome, Trajectory};

use super::PoolSettings;

/// Detects faults that affect all episodes, which no retry repairs.
#[derive(Debug)]
pub(super) struct Breaker {
    max_in_row: u32,
    max_bad_rewards: f64,
    counts: BreakerCounts,
}

/// The counters of a breaker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BreakerCounts {
    in_row: u32,
    /// For each of the last attempts, whether its reward was bad.
    recent: VecDeque<bool>,
    /// The number of episodes in a row that the rubric could not score.
    #[serde(default)]
    unscored_in_row: u32,
}

/// The number of attempts over which bad rewards are counted; 1 % of a smaller number is not significant.
const WINDOW: usize = 256;

impl Breaker {
    pub(super) fn new(settings: &PoolSettings) -> Self {
        Self {
            max_in_row: settings.max_faults_in_row,
            max_bad_rewards: settings.max_bad_rewards,
            counts: BreakerCounts::default(),
        }
    }

    pub(super) fn counts(&self) -> BreakerCounts {
        self.counts.clone()
    }

    pub(super) fn restore(&mut self, counts: BreakerCounts) {
        self.counts = counts;
    }

    /// Counts a group that was graded with these faults, found in attempts that were counted as good; returns an error
    /// if there is one fault too many.
    pub(super) fn count_graded(&mut self, faults: &[&InfraFault]) -> Option<RolloutError> {
        if faults.iter().all(|fault| fault.reason != InfraReason::RubricError) {
            self.counts.unscored_in_row = 0;
        }
        let mut tripped = None;
        for fault in faults {
            tripped = tripped.or(self.take_back(fault));
        }
        tripped
    }

    fn take_back(&mut self, fault: &InfraFault) -> Option<RolloutError> {
        if fault.reason == InfraReason::RubricError {
            self.counts.unscored_in_row += 1;
            let n = self.counts.unscored_in_row;
            return (n >= self.max_in_row)
                .then(|| RolloutError::TooManyFaults { n, last: fault.clone() });
        }
        if fault.reason != InfraReason::BadReward {
            return None;
        }
        if let Some(was_good) = self.counts.recent.iter_mut().rfind(|is_bad| !**is_bad) {
            *was_good = true;
        }
        self.bad_rewards(fault)
    }

    /// Counts an attempt; returns an error if it is one fault too many.
    pub(super) fn count(&mut self, trajectory: &Trajectory) -> Option<RolloutError> {
        if self.counts.recent.len() == WINDOW {
            self.counts.recent.pop_front();
        }
        let Outcome::InfraFault(fault) = &trajectory.outcome else {
            self.counts.in_row = 0;
            self.counts.recent.push_back(false);
            return None;
        };
        self.counts.recent.push_back(fault.reason == InfraReason::BadReward);
        // After a crash, every episode that was running may have a call in doubt. The next attempt has calls of its
        // own.
        if fault.reason == InfraReason::ToolInDoubt {
            return None;
        }
        self.counts.in_row += 1;
        // Every further episode would fail too, because all share one model.
        if fault.reason == InfraReason::NotFinite {
            return Some(RolloutError::NotFinite { last: fault.clone() });
        }
        if self.counts.in_row >= self.max_in_row {
            return Some(RolloutError::TooManyFaults {
                n: self.counts.in_row,
                last: fault.clone(),
            });
        }
        if fault.reason == InfraReason::BadReward { self.bad_rewards(fault) } else { None }
    }

    fn bad_rewards(&self, last: &InfraFault) -> Option<RolloutError> {
        let n = self.counts.recent.iter().filter(|is_bad| **is_bad).count();
        (n > 1 && n as f64 > self.max_bad_rewards * WINDOW as f64).then(|| {
            RolloutError::BadRewards { n, of: self.counts.recent.len(), last: last.clone() }
        })
    }
}

/// The reason why rollouts cannot continue.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RolloutError {
    /// The breaker tripped: too many episodes broke in a row.
    #[error("cannot run episodes: {n} in a row broke, the last with {last}")]
    TooManyFaults {
        /// The number of faults.
        n: u32,
        /// The last fault.
        last: InfraFault,
    },
    /// Every episode of an evaluation or of a training step broke.
    #[error("cannot run episodes: each of {n} broke, the first with {first}")]
    AllBroke {
        /// The number of episodes.
        n: usize,
        /// The first fault.
        first: InfraFault,
    },
    /// The model's logits are NaN or infinite, for every further episode too.
    #[error("cannot run episodes: {last}")]
    NotFinite {
        /// The fault of the episode.
        last: InfraFault,
    },
    /// The environment blocks threads beyond its deadline, and too many are stuck.
    #[error("cannot run episodes: `{environment}` has blocked {n} threads beyond their deadline")]
    StuckThreads {
        /// The number of stuck threads.
        n: usize,
        /// The environment's name.
        environment: String,
    },
    /// The breaker tripped: the environment or the rubric returned too many invalid rewards.
    #[error("cannot run episodes: {n} of the last {of} attempts had a bad reward, the last {last}")]
    BadRewards {
        /// The number of bad rewards.
        n: usize,
        /// The number of attempts.
        of: usize,
        /// The last fault.
        last: InfraFault,
    },
}
