//! Credit from turns with the same anchor state.

use std::collections::HashMap;
use std::hash::Hash;

use crate::advantage::{AdvantageError, GroupAdvantage};
use crate::credit::{expect_finite, expect_length};

/// Compares the return of each turn with the returns of the turns of the group that acted from the
/// same anchor state: GiGPO's step advantage (arXiv 2505.10978, eq. 6 to 8).
///
/// ```text
/// A^S_ik = (G_ik − mean G) / F over the turns (j, l) of the group with anchor_jl = anchor_ik
/// F      = std G, or 1                    the paper evaluates both
/// ```
///
/// `anchors` identifies the state in which each turn acted: equal values mean equal states. A state
/// that only one turn reached gives 0. Pass discounted returns
/// ([`reward_to_go`](crate::reward_to_go); the paper's γ is 0.95), and mix the result with the
/// episode's advantage by [`mix`](crate::mix) with turn weight ω (the paper's is 1).
///
/// A turn's state precedes its action, so the comparison is unbiased even if the policy decides
/// when to stop. With F = std every state gets its own scale, which changes the gradient's
/// direction; with [`GroupAdvantage::MeanOnly`] the direction is right in large groups.
///
/// # Errors
///
/// [`AdvantageError::LengthMismatch`] unless there is one anchor per turn;
/// [`AdvantageError::NonFinite`], and the errors of the rule.
///
/// ```
/// use turnwise_objective::{GroupAdvantage, by_anchor_state};
///
/// // Both began in the lobby; only the first continued to the office.
/// let returns = [vec![1.0, 1.0], vec![0.0]];
/// let anchors = [vec!["lobby", "office"], vec!["lobby"]];
/// let step = by_anchor_state(&returns, &anchors, GroupAdvantage::MeanOnly)?;
/// assert_eq!(step, [vec![0.5, 0.0], vec![-0.5]]);
/// # Ok::<(), turnwise_objective::AdvantageError>(())
/// ```
pub fn by_anchor_state<K: Eq + Hash>(
    returns: &[Vec<f64>],
    anchors: &[Vec<K>],
    rule: GroupAdvantage,
) -> Result<Vec<Vec<f64>>, AdvantageError> {
    expect_length("anchors", returns.len(), anchors.len())?;
    expect_finite(returns)?;
    let mut visits: HashMap<&K, Vec<(usize, usize)>> = HashMap::new();
    for (member, (turns, anchors)) in returns.iter().zip(anchors).enumerate() {
        expect_length("anchors of a member", turns.len(), anchors.len())?;
        for (turn, anchor) in anchors.iter().enumerate() {
            visits.entry(anchor).or_default().push((member, turn));
        }
    }
    let mut advantages: Vec<Vec<f64>> =
        returns.iter().map(|turns| vec![0.0; turns.len()]).collect();
    // Each state writes only its own turns, so the order of the map does not matter.
    for places in visits.values() {
        let met: Vec<f64> = places.iter().map(|&(member, turn)| returns[member][turn]).collect();
        for (&(member, turn), advantage) in places.iter().zip(rule.of(&met)?) {
            advantages[member][turn] = advantage;
        }
    }
    Ok(advantages)
}
