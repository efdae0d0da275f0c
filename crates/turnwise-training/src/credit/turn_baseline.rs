use turnwise_objective::{AdvantageError, has_zero_variance, minus_mean_return_at_turn};
use turnwise_trajectory::Trajectory;

use super::returns::discounted_returns;
use super::{Conservation, Credit, CreditStreams, totals, zeros};

/// Every turn gets the discounted reward from it on, less the mean of the same of the *other* members that got as far.
///
/// ```text
/// A_ik = G_ik − mean_{j≠i, j has a turn k} G_jk,   G_ik = Σ_{l≥k} γ^(l−k) r_il
/// ```
///
/// What one turn's rewards scatter by is in no other turn's baseline, and nothing is divided by a standard deviation, so
/// that the expected policy gradient is the true one at γ = 1 also where the policy decides when to stop
/// ([`minus_mean_return_at_turn`]). With γ = 0 each turn answers for its own reward alone: right where no turn earns a later
/// one's reward, and then with the least noise.
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
        let to_go = discounted_returns(group, self.gamma);
        // Equal rewards say nothing about the members, even where their turns were rewarded differently.
        let advantages = if has_zero_variance(&totals(group)) {
            zeros(group)
        } else {
            minus_mean_return_at_turn(&to_go.values)?
        };
        Ok(CreditStreams::new(vec![to_go], advantages, Conservation::MembersSumToZero))
    }
}
