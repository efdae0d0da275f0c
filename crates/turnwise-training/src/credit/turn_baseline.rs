use turnwise_objective::{AdvantageError, has_zero_variance, minus_mean_return_at_turn};
use turnwise_trajectory::Trajectory;

use super::returns::discounted_returns;
use super::{Conservation, Credit, CreditStreams, totals, zeros};

/// Assigns the discounted reward-to-go minus that of the *other* members that reached the turn to every turn.
///
/// ```text
/// A_ik = G_ik − mean_{j≠i, j has a turn k} G_jk,   G_ik = Σ_{l≥k} γ^(l−k) r_il
/// ```
///
/// The variance of one turn's rewards is in no other turn's baseline, and nothing is divided by a standard deviation,
/// so the expected policy gradient is the true one at γ = 1, also if the policy decides when to stop
/// ([`minus_mean_return_at_turn`]). With γ = 0 each turn is credited with its own reward only, which is right if no
/// turn influences a later turn's reward, and then has the least noise.
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
        let to_go = discounted_returns(group, self.gamma)?;
        // Equal rewards give no advantage, even if different turns earned them.
        let advantages = if has_zero_variance(&totals(group)) {
            zeros(group)
        } else {
            minus_mean_return_at_turn(&to_go.values)?
        };
        Ok(CreditStreams::new(vec![to_go], advantages, Conservation::MembersSumToZero))
    }
}
