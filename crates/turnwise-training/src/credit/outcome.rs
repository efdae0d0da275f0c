use turnwise_objective::{AdvantageError, GroupAdvantage, broadcast_outcome};
use turnwise_trajectory::Trajectory;

use super::{Conservation, Credit, CreditStream, CreditStreams, n_turns, totals};

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

    fn streams(&self, group: &[&Trajectory]) -> Result<CreditStreams, AdvantageError> {
        let outcome = outcome(self.advantage, group)?;
        let advantages = outcome.values.clone();
        let conserves = Conservation::SumOf(vec![("outcome", 1.0)]);
        Ok(CreditStreams::new(vec![outcome], advantages, conserves))
    }
}

/// The advantage of each member's reward, on each of its turns.
///
/// A member without turns has nowhere to put its share, which is then missing from the sum.
pub(super) fn outcome(
    advantage: GroupAdvantage,
    group: &[&Trajectory],
) -> Result<CreditStream, AdvantageError> {
    let values = broadcast_outcome(&advantage.of(&totals(group))?, &n_turns(group))?;
    Ok(CreditStream { name: "outcome", values, conserves: Conservation::MembersSumToZero })
}
