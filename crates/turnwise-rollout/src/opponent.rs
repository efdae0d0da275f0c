use std::fmt;
use std::sync::Arc;

use turnwise_environment::{Demonstrator, derive_seed};
use turnwise_trajectory::GroupId;

use crate::Policy;

/// The choice of who plays the other seats of an environment with several [seats](turnwise_environment::Seat).
///
/// The trained policy plays one seat, which changes from group to group; all members of a group have it on the same
/// seat, so that they can be compared. In self-play, it plays all seats. In an environment with one seat, there are no
/// other seats, and every choice is the same.
#[derive(Clone, Default)]
pub enum Opponent {
    /// The trained policy itself: every seat has a conversation, rewards and a trajectory of its own, and trains.
    #[default]
    Itself,
    /// A policy that does not train, such as a frozen version. It reads the same tokens as the trained policy, so it
    /// needs its tokenizer and chat form.
    Frozen(Arc<dyn Policy>),
    /// A scripted player, made from a seed. The members of a group meet players with the same seed.
    Scripted(Arc<PlayerFactory>),
}

/// Makes a scripted player from a seed.
pub type PlayerFactory = dyn Fn(u64) -> Box<dyn Demonstrator> + Send + Sync;

/// The label of the seed that decides on a group's seat.
const SEATS: u64 = 0x5EA7;

impl Opponent {
    /// Returns whether the trained policy plays a seat of an environment with `n_seats`.
    pub(crate) fn policy_plays(&self, seat: usize, group: GroupId, n_seats: usize) -> bool {
        match self {
            Self::Itself => true,
            Self::Frozen(_) | Self::Scripted(_) => {
                derive_seed(SEATS, group.0) % n_seats.max(1) as u64 == seat as u64
            }
        }
    }

    /// Returns who plays the other seats, for an error.
    pub(crate) fn player(&self) -> &'static str {
        match self {
            Self::Itself => "the trained policy",
            Self::Frozen(_) => "a frozen policy",
            Self::Scripted(_) => "a scripted player",
        }
    }
}

impl fmt::Debug for Opponent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Itself => "Itself",
            Self::Frozen(_) => "Frozen",
            Self::Scripted(_) => "Scripted",
        })
    }
}
