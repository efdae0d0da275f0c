use std::fmt::Debug;

use turnwise_objective::{
    AdvantageError, GroupAdvantage, Std, broadcast_outcome, has_zero_variance,
    minus_mean_return_of_others, mix, normalised_over_all_turns, reward_to_go, standard_deviation,
};
use turnwise_trajectory::Trajectory;

/// How the rewards of a group become an advantage for each turn of each member.
///
/// # Contract
///
/// - `group` holds the scored members of one group and of no other; the answer has one entry for each of them, with one
///   advantage for each of its turns.
/// - Finite, and exactly 0 where nothing distinguishes the members. A group of one gets 0.
/// - Pure, and equivariant: permuting the members permutes the answer.
pub trait Credit: Send + Sync + Debug {
    /// The name in settings and records.
    fn name(&self) -> &'static str;

    /// The advantages. `[members][turns]`
    ///
    /// # Errors
    /// When a reward is not finite.
    fn assign(&self, group: &[&Trajectory]) -> Result<Vec<Vec<f64>>, AdvantageError>;
}

/// Every turn gets the advantage of the whole episode's reward: GSPO as in the paper (eq. 6).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutcomeCredit {
    /// How rewards are compared.
    pub advantage: GroupAdvantage,
}

impl Credit for OutcomeCredit {
    fn name(&self) -> &'static str {
        "outcome"
    }

    fn assign(&self, group: &[&Trajectory]) -> Result<Vec<Vec<f64>>, AdvantageError> {
        broadcast_outcome(&self.advantage.of(&totals(group))?, &n_turns(group))
    }
}

/// Every turn gets the discounted reward from it on, less the mean return of the *other* members, in units of the group's
/// standard deviation of returns.
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

    fn assign(&self, group: &[&Trajectory]) -> Result<Vec<Vec<f64>>, AdvantageError> {
        let to_go = returns(group, self.gamma);
        let firsts: Vec<f64> = to_go.iter().filter_map(|turns| turns.first()).copied().collect();
        let mut advantages = minus_mean_return_of_others(&to_go)?;
        let scale = if firsts.len() < 2 { 0.0 } else { standard_deviation(&firsts, Std::Sample)? };
        for advantage in advantages.iter_mut().flatten() {
            // Equal returns say nothing about the members, even where their turns were rewarded differently.
            *advantage = if scale > 0.0 { *advantage / scale } else { 0.0 };
        }
        Ok(advantages)
    }
}

/// The advantage of the outcome plus that of the turn's own discounted return, normalised over all turns of the group.
///
/// ```text
/// A_ik = outcome_weight · A_i + turn_weight · (G_ik − mean G) / std G
/// ```
///
/// With γ = 0 the second part is the turn's immediate reward: what this turn earned, apart from how the episode ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TurnCredit {
    /// How the episodes' rewards are compared.
    pub advantage: GroupAdvantage,
    /// γ, from 0 to 1.
    pub gamma: f64,
    /// The weight of the outcome.
    pub outcome_weight: f64,
    /// The weight of the turn.
    pub turn_weight: f64,
}

impl Credit for TurnCredit {
    fn name(&self) -> &'static str {
        "turn"
    }

    fn assign(&self, group: &[&Trajectory]) -> Result<Vec<Vec<f64>>, AdvantageError> {
        let totals = totals(group);
        let outcome = self.advantage.of(&totals)?;
        // Decided on the episodes' rewards: where those are equal, which turn earned them tells no member from another.
        if has_zero_variance(&totals) {
            return broadcast_outcome(&outcome, &n_turns(group));
        }
        let turns = normalised_over_all_turns(&returns(group, self.gamma), Std::Sample, 1e-6)?;
        mix(&outcome, &turns, self.outcome_weight, self.turn_weight)
    }
}

fn totals(group: &[&Trajectory]) -> Vec<f64> {
    group.iter().map(|member| member.reward().unwrap_or(f64::NAN)).collect()
}

fn n_turns(group: &[&Trajectory]) -> Vec<usize> {
    group.iter().map(|member| member.turns.len()).collect()
}

fn returns(group: &[&Trajectory], gamma: f64) -> Vec<Vec<f64>> {
    group.iter().map(|member| reward_to_go(&member.turn_rewards(), gamma)).collect()
}
