use turnwise_objective::{
    AdvantageError, ROUNDING, Std, minus_mean_return_of_others, standard_deviation,
};
use turnwise_trajectory::Trajectory;

use super::{
    Conservation, Credit, CreditStream, CreditStreams, has_equal_rewards, magnitude, returns, zeros,
};

/// Assigns the discounted reward-to-go minus the mean return of the *other* members, in units of the group's standard
/// deviation of returns, to every turn.
///
/// ```text
/// A_ik = ( Σ_{j≥k} γ^(j−k) r_ij − mean_{l≠i} G_l0 ) / std_l G_l0
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReturnCredit {
    /// γ, from 0 to 1.
    pub gamma: f64,
}

impl Credit for ReturnCredit {
    fn name(&self) -> &'static str {
        "return"
    }

    fn streams(&self, group: &[&Trajectory]) -> Result<CreditStreams, AdvantageError> {
        let to_go = discounted_returns(group, self.gamma)?;
        let firsts: Vec<f64> =
            to_go.values.iter().filter_map(|turns| turns.first()).copied().collect();
        let scale = standard_deviation(&firsts, Std::Sample)?;
        // Equal rewards give no advantage, even if different turns earned them.
        if scale <= ROUNDING * magnitude(group) || has_equal_rewards(group) {
            let nothing = zeros(group);
            return Ok(CreditStreams::new(vec![to_go], nothing, Conservation::MembersSumToZero));
        }
        let mut advantages = minus_mean_return_of_others(&to_go.values)?;
        advantages.iter_mut().flatten().for_each(|advantage| *advantage /= scale);
        Ok(CreditStreams::new(vec![to_go], advantages, Conservation::MembersSumToZero))
    }
}

/// Returns the discounted reward-to-go of each turn, or an error if one is not finite: a group of one and a group of
/// equal rewards are not compared, so no later check would reject the value.
pub(super) fn discounted_returns(
    group: &[&Trajectory],
    gamma: f64,
) -> Result<CreditStream, AdvantageError> {
    let values = returns(group, gamma);
    for (member, turns) in values.iter().enumerate() {
        // The last such turn has the reward that is not finite; that reward makes the returns before it not finite too.
        if let Some(turn) = turns.iter().rposition(|value| !value.is_finite()) {
            let value = turns[turn];
            return Err(AdvantageError::NonFinite { member, turn: Some(turn), value });
        }
    }
    let conserves = Conservation::DiscountedReturn { gamma };
    Ok(CreditStream { name: "return", values, conserves })
}
