use turnwise_objective::{AdvantageError, GroupAdvantage, Std, normalised_over_all_turns};
use turnwise_trajectory::Trajectory;

use super::outcome::outcome;
use super::returns::discounted_returns;
use super::{Conservation, Credit, CreditStream, CreditStreams, has_equal_rewards, settled, zeros};

/// The advantage of the outcome plus that of the turn's own discounted return, normalised over all turns of the group.
///
/// ```text
/// A_ik = outcome_weight · A_i + turn_weight · (G_ik − mean G) / std G
/// ```
///
/// With γ = 0 the second part is the turn's immediate reward, independent of how the episode ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TurnCredit {
    /// The comparison of the episodes' rewards.
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

    fn streams(&self, group: &[&Trajectory]) -> Result<CreditStreams, AdvantageError> {
        let to_go = discounted_returns(group, self.gamma)?;
        let turns = compared(group, || {
            let settled = settled(to_go.values.clone(), group);
            normalised_over_all_turns(&settled, Std::Sample, 0.0)
        })?;
        let turn =
            CreditStream { name: "turn", values: turns, conserves: Conservation::TurnsSumToZero };
        let outcome = outcome(self.advantage, group)?;
        let weights = [self.outcome_weight, self.turn_weight];
        Ok(mixed(vec![to_go, outcome, turn], weights))
    }
}

/// Compares the turns of a group; 0 if the rewards of its episodes are equal.
///
/// The episodes' rewards decide: equal rewards distinguish no members, even if different turns earned them.
pub(super) fn compared(
    group: &[&Trajectory],
    turns: impl FnOnce() -> Result<Vec<Vec<f64>>, AdvantageError>,
) -> Result<Vec<Vec<f64>>, AdvantageError> {
    if has_equal_rewards(group) { Ok(zeros(group)) } else { turns() }
}

/// Returns the weighted sum of the last two streams.
pub(super) fn mixed(parts: Vec<CreditStream>, weights: [f64; 2]) -> CreditStreams {
    let last = &parts[parts.len() - 2..];
    let pairs = last[0].values.iter().zip(&last[1].values);
    let mix = |(a, b): (&f64, &f64)| weights[0] * a + weights[1] * b;
    let advantages = pairs.map(|(a, b)| a.iter().zip(b).map(mix).collect()).collect();
    let names = vec![(last[0].name, weights[0]), (last[1].name, weights[1])];
    CreditStreams::new(parts, advantages, Conservation::SumOf(names))
}
