use std::fmt;

use serde::{Deserialize, Serialize};

/// A counter of *weights*: one more for each optimiser step that was published, starting at 0.
///
/// It never counts calls, requests or synchronisations. A token's version is written by the policy that drew it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct PolicyVersion(pub u32);

impl PolicyVersion {
    /// The version that the next published step has.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// How many versions `self` is behind `newest`; 0 when it is not behind.
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
