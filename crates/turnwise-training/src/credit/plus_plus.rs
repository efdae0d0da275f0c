use turnwise_objective::{AdvantageError, GroupAdvantage, Std, standard_deviation};
use turnwise_trajectory::Trajectory;

use super::outcome::outcome;
use super::{Conservation, Credit, CreditStreams, has_equal_rewards, zeros};

/// REINFORCE++ with baseline (arXiv 2501.03262v9): the reward minus the group's mean, in units of the standard
/// deviation of those differences over the whole batch.
///
/// All groups share one scale, so a group with rare successes is not scaled up to the size of one with many. In a batch
/// of one group, these are the mean and the standard deviation of the group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReinforcePlusPlusCredit {
    /// The convention for the standard deviation.
    pub std: Std,
    /// The number added to the standard deviation; 0 for advantages that do not depend on the unit of the rewards.
    pub epsilon: f64,
}

impl Credit for ReinforcePlusPlusCredit {
    fn name(&self) -> &'static str {
        "reinforce_plus_plus"
    }

    fn streams(&self, group: &[&Trajectory]) -> Result<CreditStreams, AdvantageError> {
        let mut outcome = outcome(GroupAdvantage::MeanOnly, group)?;
        if has_equal_rewards(group) {
            outcome.values = zeros(group);
        }
        let advantages = outcome.values.clone();
        Ok(CreditStreams::new(vec![outcome], advantages, Conservation::MembersSumToZero))
    }

    fn finish(&self, batch: &mut [CreditStreams]) -> Result<(), AdvantageError> {
        let members = batch.iter().flat_map(|streams| &streams.advantage.values);
        let all: Vec<f64> = members.filter_map(|turns| turns.first()).copied().collect();
        let scale = standard_deviation(&all, self.std)? + self.epsilon;
        let values = batch.iter_mut().flat_map(|streams| &mut streams.advantage.values).flatten();
        // A 0 stays exactly 0, also if the scale is 0.
        for value in values.filter(|value| **value != 0.0) {
            *value /= scale;
        }
        Ok(())
    }
}
