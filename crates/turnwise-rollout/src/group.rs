use serde::{Deserialize, Serialize};
use turnwise_trajectory::{GroupId, Trajectory};

/// The finished rollouts of one task that are compared with each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Unique within the run.
    pub id: GroupId,
    /// All members in member order, those without a reward included.
    pub members: Vec<Trajectory>,
}

impl Group {
    /// The members whose rewards count, in member order.
    pub fn scored(&self) -> impl Iterator<Item = &Trajectory> {
        self.members.iter().filter(|member| member.reward().is_some())
    }

    /// Their rewards, in the same order.
    #[must_use]
    pub fn rewards(&self) -> Vec<f64> {
        self.members.iter().filter_map(Trajectory::reward).collect()
    }

    /// Whether all rewards are equal, so that nothing distinguishes the members.
    #[must_use]
    pub fn has_zero_variance(&self) -> bool {
        self.rewards().windows(2).all(|pair| pair[0] == pair[1])
    }
}
