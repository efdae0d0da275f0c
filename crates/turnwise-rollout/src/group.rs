use serde::{Deserialize, Serialize};
use turnwise_trajectory::{GroupId, Trajectory};

/// The finished rollouts of one task that are compared with each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// The id, unique within the run.
    pub id: GroupId,
    /// All members in member order, including those without a reward.
    pub members: Vec<Trajectory>,
}

impl Group {
    /// Iterates over the members whose rewards count, in member order.
    pub fn scored(&self) -> impl Iterator<Item = &Trajectory> {
        self.members.iter().filter(|member| member.reward().is_some())
    }

    /// Returns the rewards of the scored members, in the same order.
    #[must_use]
    pub fn rewards(&self) -> Vec<f64> {
        self.members.iter().filter_map(Trajectory::reward).collect()
    }

    /// Returns whether all rewards are equal, so that no member has an advantage. Rewards that differ only by the
    /// rounding of their sums count as equal: 0.1 + 0.2 and 0.3.
    #[must_use]
    pub fn has_zero_variance(&self) -> bool {
        let rewards = self.rewards();
        let magnitude =
            |member: &Trajectory| member.turn_rewards().iter().map(|r| r.abs()).sum::<f64>();
        let largest = self.scored().map(magnitude).fold(0.0, f64::max);
        let rounding = if largest.is_finite() { ROUNDING * largest } else { 0.0 };
        rewards.iter().all(|reward| {
            *reward == rewards[0] || (reward / 2.0 - rewards[0] / 2.0).abs() <= rounding / 2.0
        })
    }
}

/// The largest rounding difference between equal sums of rewards, relative to the sum of their absolute values.
const ROUNDING: f64 = 1e-12;
