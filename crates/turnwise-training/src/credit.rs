//! Credit assignment: from rewards to advantages.

mod biased;
mod gigpo;
mod outcome;
mod plus_plus;
mod record;
mod returns;
mod streams;
mod turn;
mod turn_baseline;

use std::fmt::Debug;

pub use biased::TurnIndexBiasedCredit;
pub use gigpo::GigpoCredit;
pub use outcome::OutcomeCredit;
pub use plus_plus::ReinforcePlusPlusCredit;
pub use record::{CreditRecord, credit_records};
pub use returns::ReturnCredit;
pub use streams::{Conservation, CreditStream, CreditStreams};
pub use turn::TurnCredit;
pub use turn_baseline::TurnBaselineCredit;
use turnwise_objective::{AdvantageError, ROUNDING, reward_to_go};
use turnwise_trajectory::Trajectory;

/// A rule from the rewards of a group to an advantage for each turn of each member.
///
/// # Contract
///
/// - `group` holds the scored members of exactly one group; every stream has one entry for each of them, with one
///   number for each of its turns.
/// - The advantages are finite, and exactly 0 if the rewards of the members are equal. A group of one gets 0.
/// - Pure, and equivariant: permuting the members permutes the result.
/// - [`Credit::streams`] is called first, group by group; then [`Credit::finish`], once, over all groups of the batch.
///
/// # Example
///
/// A credit that compares the whole reward of an episode with that of the group's best, and gives the difference to
/// every turn. `turnwise_testkit::credits` tests it like the credits of this crate.
///
/// ```
/// use turnwise_objective::{AdvantageError, broadcast_outcome};
/// use turnwise_training::{Conservation, Credit, CreditStreams};
/// use turnwise_trajectory::Trajectory;
///
/// #[derive(Debug)]
/// struct MinusBest;
///
/// impl Credit for MinusBest {
///     fn name(&self) -> &'static str {
///         "minus_best"
///     }
///
///     fn streams(&self, group: &[&Trajectory]) -> Result<CreditStreams, AdvantageError> {
///         let mut rewards = Vec::new();
///         for (member, trajectory) in group.iter().enumerate() {
///             let value = trajectory.reward().unwrap_or(f64::NAN);
///             if !value.is_finite() {
///                 return Err(AdvantageError::NonFinite { member, turn: None, value });
///             }
///             rewards.push(value);
///         }
///         let best = rewards.iter().copied().fold(f64::NEG_INFINITY, f64::max);
///         let advantages: Vec<f64> = rewards.iter().map(|reward| reward - best).collect();
///         let n_turns: Vec<usize> = group.iter().map(|member| member.turns.len()).collect();
///         let advantages = broadcast_outcome(&advantages, &n_turns)?;
///         Ok(CreditStreams::new(Vec::new(), advantages, Conservation::Nothing))
///     }
/// }
///
/// assert!(MinusBest.assign(&[])?.is_empty());
/// # Ok::<(), AdvantageError>(())
/// ```
pub trait Credit: Send + Sync + Debug {
    /// Returns the name used in settings and records.
    fn name(&self) -> &'static str;

    /// Returns the advantage of each turn, with the streams that it is computed from.
    ///
    /// # Errors
    /// If a reward is not finite.
    fn streams(&self, group: &[&Trajectory]) -> Result<CreditStreams, AdvantageError>;

    /// Adjusts the advantages by statistics of the whole batch, such as a standard deviation over all groups. The
    /// default does nothing.
    ///
    /// # Errors
    /// If a number is not finite.
    fn finish(&self, _batch: &mut [CreditStreams]) -> Result<(), AdvantageError> {
        Ok(())
    }

    /// Returns the advantages of a group that is a batch of its own. `[members][turns]`
    ///
    /// # Errors
    /// If a reward is not finite.
    fn assign(&self, group: &[&Trajectory]) -> Result<Vec<Vec<f64>>, AdvantageError> {
        let mut batch = [self.streams(group)?];
        self.finish(&mut batch)?;
        let [streams] = batch;
        Ok(streams.advantage.values)
    }
}

/// Assigns the credit of all groups of a batch to the tokens of their members, turn by turn. Returns the streams of
/// each group's credit, for logging.
///
/// # Errors
/// If a reward is not finite.
pub fn assign_batch_credit(
    credit: &dyn Credit,
    groups: &mut [&mut [Trajectory]],
) -> Result<Vec<CreditStreams>, AdvantageError> {
    let streams = |group: &&mut [Trajectory]| credit.streams(&group.iter().collect::<Vec<_>>());
    let mut batch = groups.iter().map(streams).collect::<Result<Vec<_>, _>>()?;
    credit.finish(&mut batch)?;
    for (group, streams) in groups.iter_mut().zip(&batch) {
        for (member, advantages) in group.iter_mut().zip(&streams.advantage.values) {
            write(member, advantages);
        }
    }
    Ok(batch)
}

fn write(member: &mut Trajectory, advantages: &[f64]) {
    for (turn, advantage) in member.turns.iter().zip(advantages) {
        for tokens in member.graph.node_mut(turn.node).sampled_mut() {
            tokens.set_advantage(Some(*advantage as f32));
        }
    }
}

/// Returns the reward of each member. Rewards that differ only by rounding become equal.
fn totals(group: &[&Trajectory]) -> Vec<f64> {
    let totals = group.iter().map(|member| vec![member.reward().unwrap_or(f64::NAN)]).collect();
    settled(totals, group).concat()
}

/// Makes sums of rewards that differ only by rounding equal: 0.1 + 0.2 - 0.3 is not 0, and without an epsilon a
/// standard deviation would scale that difference up like any other. The bound on rounding comes from the terms, not
/// from their sum.
fn settled(mut sums: Vec<Vec<f64>>, group: &[&Trajectory]) -> Vec<Vec<f64>> {
    let rounding = ROUNDING * magnitude(group);
    let mut places: Vec<(usize, usize)> = (0..sums.len())
        .flat_map(|member| (0..sums[member].len()).map(move |turn| (member, turn)))
        .collect();
    places.sort_by(|a, b| sums[a.0][a.1].total_cmp(&sums[b.0][b.1]));
    let mut before: Option<(f64, f64)> = None;
    for (member, turn) in places {
        let value = sums[member][turn];
        before = Some(match before {
            // A chain of close values gets its first value.
            Some((last, first)) if value - last <= rounding => (value, first),
            _ => (value, value),
        });
        sums[member][turn] = before.map_or(value, |(_, first)| first);
    }
    sums
}

/// Returns the largest sum of a member's absolute rewards; 0 if it is not finite.
fn magnitude(group: &[&Trajectory]) -> f64 {
    let of = |member: &&Trajectory| member.turn_rewards().iter().map(|r| r.abs()).sum::<f64>();
    let largest = group.iter().map(of).fold(0.0, f64::max);
    if largest.is_finite() { largest } else { 0.0 }
}

fn n_turns(group: &[&Trajectory]) -> Vec<usize> {
    group.iter().map(|member| member.turns.len()).collect()
}

fn returns(group: &[&Trajectory], gamma: f64) -> Vec<Vec<f64>> {
    group.iter().map(|member| reward_to_go(&member.turn_rewards(), gamma)).collect()
}

/// Returns 0 for every turn of a group.
fn zeros(group: &[&Trajectory]) -> Vec<Vec<f64>> {
    group.iter().map(|member| vec![0.0; member.turns.len()]).collect()
}
