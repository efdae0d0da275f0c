use std::fmt;

use serde::{Deserialize, Serialize};

/// A place in an environment in which several agents act, such as a colour in chess; 0 is the first. Most environments
/// have one seat.
///
/// An environment with several seats says how many in [`Environment::n_seats`](crate::Environment::n_seats), addresses
/// each observation to the seat that acts next ([`Observation::to`](crate::Observation::to)), and rewards a seat that
/// did not act with [`Step::reward_of`](crate::Step::reward_of).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Seat(pub u32);

impl Seat {
    /// Returns whether it is the first seat.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Seat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)
    }
}

/// A reward of a seat that did not act in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeatReward {
    /// The seat.
    pub seat: Seat,
    /// The reward, which is added to the seat's newest turn, or to its first if it has not acted yet.
    pub reward: f64,
    /// Whether the episode counts as solved for the seat; ignored unless the step ends the episode.
    pub solved: bool,
}
