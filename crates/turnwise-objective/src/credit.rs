//! Credit for the turns of the trajectories of one group.
//!
//! `rewards[i][k]` is the reward of turn k of trajectory i; trajectories may have different numbers
//! of turns. The result has the same shape, one advantage per turn, and [`spread_over_tokens`]
//! assigns it to the tokens.

use crate::advantage::{AdvantageError, Std, leave_one_out, mean_only, mean_std};
use crate::sum::sum;

/// Returns the discounted sum of the rewards from each turn on; shape: one per turn.
///
/// ```text
/// G_k = Σ_{j≥k} gamma^(j−k) r_j
/// ```
///
/// With gamma 1, G_0 is the return of the trajectory. A reward that is not finite makes the returns
/// of the turns before it not finite too; the functions that compare trajectories, and every
/// objective, reject such numbers.
///
/// ```
/// assert_eq!(turnwise_objective::reward_to_go(&[1.0, 0.0, 4.0], 0.5), [2.0, 2.0, 4.0]);
/// ```
#[must_use]
pub fn reward_to_go(rewards: &[f64], gamma: f64) -> Vec<f64> {
    let mut to_go = rewards.to_vec();
    for turn in (1..to_go.len()).rev() {
        to_go[turn - 1] += gamma * to_go[turn];
    }
    to_go
}

/// Adds the reward of the whole trajectory to that of its last turn, then applies [`reward_to_go`].
///
/// A trajectory without turns stays empty.
///
/// ```
/// assert_eq!(turnwise_objective::reward_to_go_with_outcome(&[0.25, 0.0], 1.0, 1.0), [1.25, 1.0]);
/// ```
#[must_use]
pub fn reward_to_go_with_outcome(rewards: &[f64], outcome: f64, gamma: f64) -> Vec<f64> {
    let mut rewards = rewards.to_vec();
    if let Some(last) = rewards.last_mut() {
        *last += outcome;
    }
    reward_to_go(&rewards, gamma)
}

/// Assigns the advantage of a trajectory to each of its turns: GSPO's credit.
///
/// # Errors
///
/// [`AdvantageError::LengthMismatch`] unless there is one number of turns per advantage.
///
/// ```
/// let credit = turnwise_objective::broadcast_outcome(&[0.5, -0.5], &[2, 1])?;
/// assert_eq!(credit, [vec![0.5, 0.5], vec![-0.5]]);
/// # Ok::<(), turnwise_objective::AdvantageError>(())
/// ```
pub fn broadcast_outcome(
    advantages: &[f64],
    n_turns: &[usize],
) -> Result<Vec<Vec<f64>>, AdvantageError> {
    expect_length("n_turns", advantages.len(), n_turns.len())?;
    Ok(advantages
        .iter()
        .zip(n_turns)
        .map(|(&advantage, &n_turns)| vec![advantage; n_turns])
        .collect())
}

/// Returns the return from each turn on minus the group's mean return.
///
/// ```text
/// A_ik = G_ik − mean_j G_j0
/// ```
///
/// The baseline is one number for the whole group and every turn, so it does not depend on when a
/// trajectory stopped. The expected policy gradient is (1 − 1/n) times the true one. A trajectory
/// without turns counts in no mean.
///
/// # Errors
///
/// [`AdvantageError::NonFinite`] and [`AdvantageError::Overflow`].
///
/// ```
/// use turnwise_objective::{minus_mean_return, reward_to_go};
///
/// let to_go = [reward_to_go(&[0.0, 1.0], 1.0), reward_to_go(&[0.0], 1.0)];
/// assert_eq!(minus_mean_return(&to_go)?, [vec![0.5, 0.5], vec![-0.5]]);
/// # Ok::<(), turnwise_objective::AdvantageError>(())
/// ```
pub fn minus_mean_return(to_go: &[Vec<f64>]) -> Result<Vec<Vec<f64>>, AdvantageError> {
    shifted_by_first_turn(to_go, mean_only)
}

/// Returns the return from each turn on minus the mean return of the *other* trajectories; 0 for a
/// trajectory that is alone in its group.
///
/// ```text
/// A_ik = G_ik − 1/(n−1) Σ_{j≠i} G_j0
/// ```
///
/// The expected policy gradient is the true one.
///
/// # Errors
///
/// [`AdvantageError::NonFinite`] and [`AdvantageError::Overflow`].
///
/// ```
/// use turnwise_objective::minus_mean_return_of_others;
///
/// let to_go = [vec![1.0, 1.0], vec![0.0]];
/// assert_eq!(minus_mean_return_of_others(&to_go)?, [vec![1.0, 1.0], vec![-1.0]]);
/// # Ok::<(), turnwise_objective::AdvantageError>(())
/// ```
pub fn minus_mean_return_of_others(to_go: &[Vec<f64>]) -> Result<Vec<Vec<f64>>, AdvantageError> {
    if to_go.iter().filter(|turns| !turns.is_empty()).count() < 2 {
        expect_finite(to_go)?;
        return Ok(to_go.iter().map(|turns| vec![0.0; turns.len()]).collect());
    }
    shifted_by_first_turn(to_go, leave_one_out)
}

/// Returns the return from each turn on minus the mean return from the same turn on of the *other*
/// trajectories that have it: a baseline per turn. 0 for a trajectory that is alone in its group.
///
/// ```text
/// A_ik = G_ik − mean_{j≠i, j has a turn k} G_jk          or − mean_{j≠i} G_j0 where no other has one
/// ```
///
/// The others' rewards do not depend on this trajectory's actions, so the expected policy gradient
/// is the true one. Unlike [`per_turn_index_biased`], this holds if the policy decides when to
/// stop: the cost of stopping stays in G_ik. If rewards are given turn by turn, the variance is
/// smaller than with one baseline for the whole trajectory.
///
/// # Errors
///
/// [`AdvantageError::NonFinite`].
///
/// ```
/// use turnwise_objective::minus_mean_return_at_turn;
///
/// let to_go = [vec![3.0, 2.0], vec![1.0, 1.0], vec![0.0]];
/// let advantages = minus_mean_return_at_turn(&to_go)?;
/// assert_eq!(advantages, [vec![2.5, 1.0], vec![-0.5, -1.0], vec![-2.0]]);
/// # Ok::<(), turnwise_objective::AdvantageError>(())
/// ```
pub fn minus_mean_return_at_turn(to_go: &[Vec<f64>]) -> Result<Vec<Vec<f64>>, AdvantageError> {
    expect_finite(to_go)?;
    // Differences from the member's own return are exactly 0 if all returns are equal.
    let excess = |member: usize, turn: usize, at: usize| -> Option<f64> {
        let others = to_go.iter().enumerate().filter(|(other, _)| *other != member);
        let values: Vec<f64> = others
            .filter_map(|(_, turns)| turns.get(at))
            .map(|other| to_go[member][turn] - other)
            .collect();
        (!values.is_empty()).then(|| sum(values.iter().copied()) / values.len() as f64)
    };
    let of = |member: usize, turn: usize| {
        excess(member, turn, turn).or_else(|| excess(member, turn, 0)).unwrap_or(0.0)
    };
    Ok((0..to_go.len())
        .map(|member| (0..to_go[member].len()).map(|turn| of(member, turn)).collect())
        .collect())
}

/// Normalises all turns of a group together: mean 0 and standard deviation 1 over every turn of
/// every trajectory.
///
/// ```text
/// A_ik = (v_ik − mean_{jl} v_jl) / (std_{jl} v_jl + epsilon)
/// ```
///
/// Pass returns ([`reward_to_go`]). The mean counts a trajectory once for each of its turns, so in
/// a small group the baseline depends a little on when a trajectory stopped; the bias vanishes as
/// 1/n. With immediate rewards, it is the credit of a policy that does not look ahead, in a group
/// of any size.
///
/// # Errors
///
/// [`AdvantageError::NonFinite`], [`AdvantageError::Overflow`], and
/// [`AdvantageError::InvalidScale`] for `epsilon`.
///
/// ```
/// use turnwise_objective::{Std, normalised_over_all_turns};
///
/// let to_go = [vec![2.0, 0.0], vec![0.0, 2.0]];
/// let advantages = normalised_over_all_turns(&to_go, Std::Population, 0.0)?;
/// assert_eq!(advantages, [vec![1.0, -1.0], vec![-1.0, 1.0]]);
/// # Ok::<(), turnwise_objective::AdvantageError>(())
/// ```
pub fn normalised_over_all_turns(
    values: &[Vec<f64>],
    std: Std,
    epsilon: f64,
) -> Result<Vec<Vec<f64>>, AdvantageError> {
    expect_finite(values)?;
    let mut advantages = mean_std(&values.concat(), std, epsilon)?.into_iter();
    Ok(values.iter().map(|turns| advantages.by_ref().take(turns.len()).collect()).collect())
}

/// **Biased**: compares turn k of a trajectory with turn k of the others; for comparison only.
///
/// ```text
/// A_ik = (v_ik − mean_j v_jk) / (std_j v_jk + epsilon), j over the trajectories with a turn k
/// ```
///
/// If the policy decides when to stop, reaching a turn is itself an outcome, and comparing only the
/// trajectories that reached it hides the value of reaching it. Example: every first turn earns 1,
/// and continuing earns c. Applied to rewards, all trajectories that continued get the same c, so
/// all advantages are 0 and so is the gradient for continuing; the true one is p(1 − p)c. Applied
/// to returns, each index gets its own scale, which changes the gradient's direction. Neither
/// improves with larger groups. This is the normalisation of MT-GRPO (arXiv 2505.11821), which was
/// proposed for trajectories with equal numbers of turns.
///
/// # Errors
///
/// [`AdvantageError::NonFinite`], [`AdvantageError::Overflow`], and
/// [`AdvantageError::InvalidScale`] for `epsilon`.
///
/// ```
/// use turnwise_objective::{Std, per_turn_index_biased};
///
/// let stopping = [vec![1.0], vec![1.0, 5.0], vec![1.0, 5.0]];
/// let advantages = per_turn_index_biased(&stopping, Std::Sample, 1e-6)?;
/// assert_eq!(advantages, [vec![0.0], vec![0.0, 0.0], vec![0.0, 0.0]]);
/// # Ok::<(), turnwise_objective::AdvantageError>(())
/// ```
pub fn per_turn_index_biased(
    values: &[Vec<f64>],
    std: Std,
    epsilon: f64,
) -> Result<Vec<Vec<f64>>, AdvantageError> {
    expect_finite(values)?;
    let mut advantages: Vec<Vec<f64>> =
        values.iter().map(|turns| Vec::with_capacity(turns.len())).collect();
    for turn in 0..values.iter().map(Vec::len).max().unwrap_or(0) {
        let reached: Vec<f64> =
            values.iter().filter_map(|turns| turns.get(turn)).copied().collect();
        let mut normalised = mean_std(&reached, std, epsilon)?.into_iter();
        for (turns, advantages) in values.iter().zip(&mut advantages) {
            if turns.len() > turn {
                advantages.extend(normalised.next());
            }
        }
    }
    Ok(advantages)
}

/// Returns the weighted sum of the outcome's advantage and the turn's advantage.
///
/// ```text
/// A_ik = outcome_weight · A_i + turn_weight · A_ik
/// ```
///
/// # Errors
///
/// [`AdvantageError::LengthMismatch`] unless there is one outcome per trajectory.
///
/// ```
/// let mixed = turnwise_objective::mix(&[1.0, -1.0], &[vec![0.5, -0.5], vec![0.0]], 1.0, 0.5)?;
/// assert_eq!(mixed, [vec![1.25, 0.75], vec![-1.0]]);
/// # Ok::<(), turnwise_objective::AdvantageError>(())
/// ```
pub fn mix(
    outcome_advantages: &[f64],
    turn_advantages: &[Vec<f64>],
    outcome_weight: f64,
    turn_weight: f64,
) -> Result<Vec<Vec<f64>>, AdvantageError> {
    expect_length("outcome_advantages", turn_advantages.len(), outcome_advantages.len())?;
    let mix_one = |outcome: &f64, turn: &f64| outcome_weight * outcome + turn_weight * turn;
    let trajectories = outcome_advantages.iter().zip(turn_advantages);
    Ok(trajectories
        .map(|(outcome, turns)| turns.iter().map(|turn| mix_one(outcome, turn)).collect())
        .collect())
}

/// Assigns the advantage of each turn of one trajectory to each of its sampled tokens, turn by
/// turn.
///
/// # Errors
///
/// [`AdvantageError::LengthMismatch`] unless there is one number of tokens per turn.
///
/// ```
/// assert_eq!(turnwise_objective::spread_over_tokens(&[0.5, -1.0], &[2, 1])?, [0.5, 0.5, -1.0]);
/// # Ok::<(), turnwise_objective::AdvantageError>(())
/// ```
pub fn spread_over_tokens(
    turn_advantages: &[f64],
    n_tokens: &[usize],
) -> Result<Vec<f64>, AdvantageError> {
    expect_length("n_tokens", turn_advantages.len(), n_tokens.len())?;
    let turns = turn_advantages.iter().zip(n_tokens);
    Ok(turns.flat_map(|(&advantage, &n_tokens)| std::iter::repeat_n(advantage, n_tokens)).collect())
}

/// Returns G_ik − b_i, where the rule maps the returns G_i0 to G_i0 − b_i.
fn shifted_by_first_turn(
    to_go: &[Vec<f64>],
    rule: fn(&[f64]) -> Result<Vec<f64>, AdvantageError>,
) -> Result<Vec<Vec<f64>>, AdvantageError> {
    expect_finite(to_go)?;
    let returns: Vec<f64> = to_go.iter().filter_map(|turns| turns.first()).copied().collect();
    let mut firsts = rule(&returns)?.into_iter();
    let shifted = |turns: &Vec<f64>| -> Vec<f64> {
        let Some(first) = turns.first().and_then(|_| firsts.next()) else { return Vec::new() };
        turns.iter().map(|value| (value - turns[0]) + first).collect()
    };
    Ok(to_go.iter().map(shifted).collect())
}

pub(crate) fn expect_length(
    slice: &'static str,
    expected: usize,
    actual: usize,
) -> Result<(), AdvantageError> {
    if actual == expected {
        Ok(())
    } else {
        Err(AdvantageError::LengthMismatch { slice, expected, actual })
    }
}

pub(crate) fn expect_finite(values: &[Vec<f64>]) -> Result<(), AdvantageError> {
    for (member, turns) in values.iter().enumerate() {
        if let Some(turn) = turns.iter().position(|value| !value.is_finite()) {
            return Err(AdvantageError::NonFinite { member, turn: Some(turn), value: turns[turn] });
        }
    }
    Ok(())
}
