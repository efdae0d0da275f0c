use turnwise_objective::{
    AdvantageError, Std, has_zero_variance, reward_to_go, standard_deviation,
};
use turnwise_training::{Conservation, Credit, CreditStream, CreditStreams};
use turnwise_trajectory::Trajectory;

use crate::minus_mean_at_turn_of_others;

/// Every turn gets the discounted reward from it on, less the mean of that over the *other* members' same turn, in units of
/// the group's standard deviation of returns: [`minus_mean_at_turn_of_others`] for the training loop.
///
/// A turn after which nobody earns anything gets exactly 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TurnBaselineCredit {
    /// γ, from 0 to 1.
    pub gamma: f64,
}

impl Credit for TurnBaselineCredit {
    fn name(&self) -> &'static str {
        "turn_baseline"
    }

    fn streams(&self, group: &[&Trajectory]) -> Result<CreditStreams, AdvantageError> {
        let to_go: Vec<Vec<f64>> =
            group.iter().map(|one| reward_to_go(&one.turn_rewards(), self.gamma)).collect();
        let mut advantages = minus_mean_at_turn_of_others(&to_go)?;
        let firsts: Vec<f64> = to_go.iter().filter_map(|turns| turns.first()).copied().collect();
        // Equal returns say nothing about the members.
        let scale = if firsts.len() < 2 || has_zero_variance(&firsts) {
            f64::INFINITY
        } else {
            standard_deviation(&firsts, Std::Sample)?
        };
        advantages.iter_mut().flatten().for_each(|advantage| *advantage /= scale);
        let conserves = Conservation::DiscountedReturn { gamma: self.gamma };
        let parts = vec![CreditStream { name: "return", values: to_go, conserves }];
        Ok(CreditStreams::new(parts, advantages, Conservation::Nothing))
    }
}
