use std::collections::BTreeMap;

use turnwise_rollout::Census;

/// The books of a run: every episode, counted in one place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Books {
    /// Episodes that were started; a retry does not count.
    pub dispatched: u64,
    /// Episodes that were trained on.
    pub trained: u64,
    /// Episodes that were dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Open episodes of the rollout pool.
    pub open: Census,
    /// Episodes of finished groups that wait for the trainer.
    pub ready: u64,
}

impl Books {
    /// Returns the number of episodes that are neither trained nor dropped nor suspended.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.open.total() - self.open.suspended + self.ready
    }

    /// Returns `dispatched − trained − dropped − in flight − suspended`: 0, unless episodes got lost.
    #[must_use]
    pub fn unaccounted(&self) -> i64 {
        let known = self.trained
            + self.dropped.values().sum::<u64>()
            + self.in_flight()
            + self.open.suspended;
        self.dispatched.cast_signed() - known.cast_signed()
    }
}
