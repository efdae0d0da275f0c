use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The ledger of a pool: every started episode is accounted for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Episodes started; a retry does not count.
    pub dispatched: u64,
    /// Episodes delivered in finished groups.
    pub delivered: u64,
    /// Episodes dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
}

impl Ledger {
    /// Returns the number of episodes that are neither delivered nor dropped according to the ledger.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.dispatched - self.delivered - self.dropped.values().sum::<u64>()
    }
}

/// Where the open episodes are, counted one by one, independently of the [`Ledger`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Census {
    /// Episodes that are being advanced.
    pub running: u64,
    /// Suspended episodes that wait to be advanced again.
    pub suspended: u64,
    /// Episodes that have not begun.
    pub fresh: u64,
    /// Episodes with an outcome that wait for the rest of their group or for its rubric.
    pub gathered: u64,
}

impl Census {
    /// Returns the number of open episodes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.running + self.suspended + self.fresh + self.gathered
    }
}
