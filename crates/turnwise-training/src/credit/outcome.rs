use turnwise_objective::{AdvantageError, GroupAdvantage, broadcast_outcome};
use turnwise_trajectory::Trajectory;

use super::{Conservation, Credit, CreditStream, CreditStreams, n_turns, totals};

/// Assigns the advantage of the whole episode's reward to every turn: GSPO as in the paper (eq. 6).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutcomeCredit {
    /// The comparison of rewards.
    pub advantage: GroupAdvantage,
}

impl Credit for OutcomeCredit {
    fn name(&self) -> &'static str {
        "outcome"
    }

    fn streams(&self, group: &[&Trajectory]) -> Result<CreditStreams, AdvantageError> {
        let outcome = outcome(self.advantage, group)?;
        let advantages = outcome.values.clone();
        let conserves = Conservation::SumOf(vec![("outcome", 1.0)]);
        Ok(CreditStreams::new(vec![outcome], advantages, conserves))
    }
}

/// Returns the advantage of each member's reward, on each of its turns.
///
/// A member without turns loses its share, which is then missing from the sum.
pub(super) fn outcome(
    advantage: GroupAdvantage,
    group: &[&Trajectory],
) -> Result<CreditStream, AdvantageError> {
    let values = broadcast_outcome(&advantage.of(&totals(group))?, &n_turns(group))?;
    Ok(CreditStream { name: "outcome", values, conserves: Conservation::MembersSumToZero })
}
