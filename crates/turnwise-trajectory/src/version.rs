use std::fmt;

use serde::{Deserialize, Serialize};

/// A counter of *weights*, starting at 0: each published optimiser step adds one.
///
/// It never counts calls, requests or synchronisations. The policy that samples a token records its own version on it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct PolicyVersion(pub u32);

impl PolicyVersion {
    /// Returns the version of the next published step.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Returns how many versions `self` is behind `newest`; 0 if it is not behind.
    #[must_use]
    pub fn staleness(self, newest: Self) -> u32 {
        newest.0.saturating_sub(self.0)
    }
}

impl fmt::Display for PolicyVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "v{}", self.0)
    }
}
