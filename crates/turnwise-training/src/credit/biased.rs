use turnwise_objective::{AdvantageError, Std, per_turn_index_biased};
use turnwise_trajectory::Trajectory;

use super::returns::discounted_returns;
use super::turn::compared;
use super::{Conservation, Credit, CreditStreams, settled};

/// **Biased, for comparison only**: turn k of a member compared with turn k of the members that got as far (MT-GRPO, arXiv
/// 2505.11821).
///
/// Where the policy decides when to stop, reaching a turn is itself an outcome, and this hides what it was worth: with
/// γ = 0 and "going on" paying everyone who went on the same, its gradient for going on is 0. With γ > 0 every turn index
/// gets a scale of its own, which bends the gradient. Neither becomes better with larger groups. Use
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
        let to_go = discounted_returns(group, self.gamma);
        let advantages = compared(group, || {
            let settled = settled(to_go.values.clone(), group);
            per_turn_index_biased(&settled, Std::Sample, 0.0)
        })?;
        Ok(CreditStreams::new(vec![to_go], advantages, Conservation::TurnsSumToZero))
    }
}
