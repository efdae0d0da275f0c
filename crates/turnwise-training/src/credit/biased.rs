use turnwise_objective::{AdvantageError, Std, per_turn_index_biased};
use turnwise_trajectory::Trajectory;

use super::returns::discounted_returns;
use super::turn::compared;
use super::{Conservation, Credit, CreditStreams, settled};

/// **Biased, for comparison only**: compares turn k of a member with turn k of the members that reached it (MT-GRPO,
/// arXiv 2505.11821).
///
/// If the policy decides when to stop, reaching a turn is itself an outcome, and this credit hides its value: with γ =
/// 0 and the same reward for every member that continues, its gradient for continuing is 0. With γ > 0 every turn index
/// gets its own scale, which changes the gradient's direction. Neither improves with larger groups. Use
/// [`ReturnCredit`](crate::ReturnCredit) or [`GigpoCredit`](crate::GigpoCredit).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TurnIndexBiasedCredit {
    /// γ, from 0 to 1.
    pub gamma: f64,
}

impl Credit for TurnIndexBiasedCredit {
    fn name(&self) -> &'static str {
        "turn_index_biased"
    }

    fn streams(&self, group: &[&Trajectory]) -> Result<CreditStreams, AdvantageError> {
        let to_go = discounted_returns(group, self.gamma)?;
        let advantages = compared(group, || {
            let settled = settled(to_go.values.clone(), group);
            per_turn_index_biased(&settled, Std::Sample, 0.0)
        })?;
        Ok(CreditStreams::new(vec![to_go], advantages, Conservation::TurnsSumToZero))
    }
}
