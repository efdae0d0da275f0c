use turnwise_objective::{
    AdvantageError, Std, has_zero_variance, reward_to_go, standard_deviation,
};
use turnwise_training::{Conservation, Credit, CreditStream, CreditStreams};
use turnwise_trajectory::Trajectory;

use crate::minus_mean_at_turn_of_others;

/// Every turn is compared with the *other* members' same turn: its discounted return less the mean of theirs, in units of
/// the standard deviation of that turn's returns in the group.
///
/// ```text
/// A_ik = ( G_ik − mean_{j≠i} G_jk ) / std_j G_jk        0 where the turn's returns are all equal
/// ```
///
/// What is noise in one turn is then in no other turn's advantage, nor in its scale. It is for episodes with equal numbers
/// of turns: the units of each turn are of its own, and where the policy decides when to stop that bends the gradient, as
/// [`per_turn_index_biased`](turnwise_objective::per_turn_index_biased) explains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SameTurnCredit {
    /// γ, from 0 to 1.
    pub gamma: f64,
}

impl Credit for SameTurnCredit {
    fn name(&self) -> &'static str {
        "same_turn"
    }

    fn streams(&self, group: &[&Trajectory]) -> Result<CreditStreams, AdvantageError> {
        let to_go: Vec<Vec<f64>> =
            group.iter().map(|one| reward_to_go(&one.turn_rewards(), self.gamma)).collect();
        let advantages = same_turn(&to_go)?;
        let conserves = Conservation::DiscountedReturn { gamma: self.gamma };
        let parts = vec![CreditStream { name: "return", values: to_go, conserves }];
        Ok(CreditStreams::new(parts, advantages, Conservation::Nothing))
    }
}

/// [`SameTurnCredit`] on the returns from each turn on, `[members][turns]`.
///
/// # Errors
/// When a return is not finite.
pub fn same_turn(to_go: &[Vec<f64>]) -> Result<Vec<Vec<f64>>, AdvantageError> {
    let mut advantages = minus_mean_at_turn_of_others(to_go)?;
    for turn in 0..to_go.iter().map(Vec::len).max().unwrap_or(0) {
        let there: Vec<f64> = to_go.iter().filter_map(|turns| turns.get(turn)).copied().collect();
        // Equal returns say nothing about the members.
        let scale = if there.len() < 2 || has_zero_variance(&there) {
            f64::INFINITY
        } else {
            standard_deviation(&there, Std::Sample)?
        };
        let here = advantages.iter_mut().filter_map(|turns| turns.get_mut(turn));
        here.for_each(|advantage| *advantage /= scale);
    }
    Ok(advantages)
}
