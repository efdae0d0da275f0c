use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The books: every episode that was started is somewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Episodes started; a retry is not a new episode.
    pub dispatched: u64,
    /// Episodes handed over in finished groups.
    pub delivered: u64,
    /// Episodes dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
}

impl Ledger {
    /// Episodes that the books say are neither delivered nor dropped.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.dispatched - self.delivered - self.dropped.values().sum::<u64>()
    }
}

/// Where the open episodes are, counted one by one and not from the [`Ledger`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Census {
    /// Being advanced.
    pub running: u64,
    /// Have begun, and wait to be advanced again.
    pub suspended: u64,
    /// Have not begun.
    pub fresh: u64,
    /// Have an outcome, and wait for the rest of their group or for its rubric.
    pub gathered: u64,
}

impl Census {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.running + self.suspended + self.fresh + self.gathered
    }
}
