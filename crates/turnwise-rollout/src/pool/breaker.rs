use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use turnwise_trajectory::{InfraFault, InfraReason, Outcome, Trajectory};

use super::PoolSettings;

/// Notices that something is broken for all episodes, which no retry repairs.
#[derive(Debug)]
pub(super) struct Breaker {
    max_in_row: u32,
    max_bad_rewards: f64,
    counts: BreakerCounts,
}

/// What a breaker has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BreakerCounts {
    in_row: u32,
    /// For each of the last attempts whether its reward was bad.
    recent: VecDeque<bool>,
}

/// Attempts that bad rewards are counted over: 1 % of fewer says nothing.
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

    /// An error when grading took back one verdict too many. Its attempt has been counted as a good one.
    pub(super) fn take_back(&mut self, fault: &InfraFault) -> Option<RolloutError> {
        if fault.reason != InfraReason::BadReward {
            return None;
        }
        if let Some(was_good) = self.counts.recent.iter_mut().rfind(|is_bad| !**is_bad) {
            *was_good = true;
        }
        self.bad_rewards(fault)
    }

    /// An error when this attempt was one fault too many.
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
        self.counts.in_row += 1;
        // The model is the same for all episodes.
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

/// Why rollouts cannot go on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RolloutError {
    /// The breaker: something is broken for all episodes.
    #[error("run episodes: {n} in a row broke, the last with {last}")]
    TooManyFaults {
        /// How many.
        n: u32,
        /// The last one.
        last: InfraFault,
    },
    /// The model's logits are NaN or infinite, for every episode that follows too.
    #[error("run episodes: {last}")]
    NotFinite {
        /// The episode that met them.
        last: InfraFault,
    },
    /// The environment blocks threads beyond its deadline, and there are no more to lose.
    #[error("run episodes: `{environment}` has blocked {n} threads beyond their deadline")]
    StuckThreads {
        /// How many.
        n: usize,
        /// The environment.
        environment: String,
    },
    /// The breaker: the environment or the rubric rewards what it must not.
    #[error("run episodes: {n} of the last {of} attempts had a bad reward, the last {last}")]
    BadRewards {
        /// How many.
        n: usize,
        /// Among how many.
        of: usize,
        /// The last one.
        last: InfraFault,
    },
}
