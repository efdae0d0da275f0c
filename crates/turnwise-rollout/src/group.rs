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

    /// Returns the number of members with a reward on a seat.
    #[must_use]
    pub fn n_scored(&self) -> usize {
        self.members.iter().filter(|member| has_reward(member)).count()
    }

    /// Divides a group of an environment with several seats by seat, because only trajectories of the same seat are
    /// compared. A group of an environment with one seat stays one group.
    ///
    /// A member without a trajectory on a seat, because it broke before it began, is missing in the group of that seat.
    #[must_use]
    pub fn into_seats(mut self) -> Vec<Self> {
        let n_others = self.members.iter().map(|member| member.others.len()).max().unwrap_or(0);
        let mut others = vec![Vec::new(); n_others];
        for member in &mut self.members {
            for (of_seat, other) in others.iter_mut().zip(std::mem::take(&mut member.others)) {
                of_seat.push(other);
            }
        }
        let id = self.id;
        std::iter::once(self)
            .chain(others.into_iter().map(|members| Self { id, members }))
            .collect()
    }
}

/// Returns whether a seat of the episode has a reward.
pub(crate) fn has_reward(member: &Trajectory) -> bool {
    member.reward().is_some() || member.others.iter().any(|other| other.reward().is_some())
}
