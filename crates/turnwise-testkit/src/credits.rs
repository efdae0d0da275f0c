//! Property tests of credit: generators of the rewards of groups, and one check for each property.
//!
//! Rewards are `[members][turns]`; [`rewarded`] makes trajectories of such rewards. A check takes any [`Credit`] and
//! returns an error that names the property and the numbers. [`check_contract`] runs the checks that hold for all
//! credits; [`check_equal_rewards`], [`check_common_reward`], [`check_reward_unit`] and [`check_groups_apart`] are for
//! credits that claim the property.
//!
//! # Example
//!
//! ```
//! use turnwise_objective::GroupAdvantage;
//! use turnwise_testkit::credits::{check_contract, check_equal_rewards, groups};
//! use turnwise_testkit::proptest::prelude::*;
//! use turnwise_training::OutcomeCredit;
//!
//! const CREDIT: OutcomeCredit = OutcomeCredit { advantage: GroupAdvantage::MeanOnly };
//!
//! proptest! {
//!     // In a test module: #[test]
//!     fn it_keeps_the_contract(rewards in groups()) {
//!         check_contract(&CREDIT, &rewards)?;
//!     }
//!
//!     fn equal_rewards_teach_nothing(rewards in groups()) {
//!         check_equal_rewards(&CREDIT, &rewards, 1.0)?;
//!     }
//! }
//!
//! it_keeps_the_contract();
//! equal_rewards_teach_nothing();
//! ```

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use turnwise_training::{Credit, assign_batch_credit};
use turnwise_trajectory::Trajectory;

use crate::rewarded;

/// Generates the rewards of a group of 1 to 6 members with 1 to 4 turns, in steps of a quarter, so that rewards are
/// often equal and never nearly equal.
pub fn groups() -> impl Strategy<Value = Vec<Vec<f64>>> {
    let reward = (-8_i8..9).prop_map(|quarters| f64::from(quarters) / 4.0);
    prop::collection::vec(prop::collection::vec(reward, 1..5), 1..7)
}

/// Runs every check that holds for each credit.
///
/// # Errors
///
/// Those of the first check that fails.
pub fn check_contract(credit: &dyn Credit, rewards: &[Vec<f64>]) -> TestCaseResult {
    check_shape(credit, rewards)?;
    let order: Vec<usize> = (0..rewards.len()).rev().collect();
    check_member_order(credit, rewards, &order)?;
    check_streams(credit, rewards)?;
    for member in rewards {
        check_group_of_one(credit, member)?;
    }
    check_refusals(credit, rewards)
}

/// Checks that every turn of every member gets one finite advantage.
///
/// # Errors
///
/// Fails with the advantages.
pub fn check_shape(credit: &dyn Credit, rewards: &[Vec<f64>]) -> TestCaseResult {
    let advantages = assigned(credit, &rewarded(rewards))?;
    let is_right = advantages.iter().map(Vec::len).eq(rewards.iter().map(Vec::len))
        && advantages.iter().flatten().all(|advantage| advantage.is_finite());
    prop_assert!(is_right, "shape: {credit:?} gives {advantages:?} for the rewards {rewards:?}");
    Ok(())
}

/// Checks that permuting the members permutes the advantages. `order` is a permutation of the members' positions.
///
/// # Errors
///
/// Fails with the advantages that differ.
pub fn check_member_order(
    credit: &dyn Credit,
    rewards: &[Vec<f64>],
    order: &[usize],
) -> TestCaseResult {
    let group = rewarded(rewards);
    let permuted: Vec<Trajectory> = order.iter().map(|place| group[*place].clone()).collect();
    let straight = assigned(credit, &group)?;
    let expected: Vec<Vec<f64>> = order.iter().map(|place| straight[*place].clone()).collect();
    let actual = assigned(credit, &permuted)?;
    prop_assert!(
        near(&actual, &expected),
        "member order: {credit:?} gives {actual:?} instead of {expected:?} in the order {order:?}"
    );
    Ok(())
}

/// Checks that each stream has its invariant (see [`CreditStreams::imbalance`](turnwise_training::CreditStreams)), and
/// that the tokens get the last stream.
///
/// # Errors
///
/// Fails with the stream and the deviation from its invariant.
pub fn check_streams(credit: &dyn Credit, rewards: &[Vec<f64>]) -> TestCaseResult {
    let group = rewarded(rewards);
    let members: Vec<&Trajectory> = group.iter().collect();
    let failed = |error| TestCaseError::fail(format!("streams: {credit:?}: {error}"));
    let mut batch = [credit.streams(&members).map_err(failed)?];
    credit.finish(&mut batch).map_err(failed)?;
    for stream in batch[0].all() {
        let missing = batch[0].imbalance(stream, &members);
        prop_assert!(missing <= 1e-9, "streams: {credit:?}: {} lacks {missing}", stream.name);
    }
    let advantages = assigned(credit, &group)?;
    prop_assert_eq!(&batch[0].advantage.values, &advantages, "streams: {:?}", credit);
    Ok(())
}

/// Checks that a member alone in its group gets exactly 0.
///
/// # Errors
///
/// Fails with the advantages.
pub fn check_group_of_one(credit: &dyn Credit, rewards: &[f64]) -> TestCaseResult {
    let advantages = assigned(credit, &rewarded(&[rewards.to_vec()]))?;
    prop_assert!(
        advantages.iter().flatten().all(|one| *one == 0.0),
        "group of one: {credit:?} gives {advantages:?} for the rewards {rewards:?}"
    );
    Ok(())
}

/// Checks that a reward that is not finite is an error, at the first and the last turn of each member.
///
/// # Errors
///
/// Fails with the advantages that were given.
pub fn check_refusals(credit: &dyn Credit, rewards: &[Vec<f64>]) -> TestCaseResult {
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for member in 0..rewards.len() {
            for turn in [0, rewards[member].len().saturating_sub(1)] {
                let mut broken = rewards.to_vec();
                let Some(reward) = broken[member].get_mut(turn) else { continue };
                *reward = value;
                let group = rewarded(&broken);
                let given = credit.assign(&group.iter().collect::<Vec<_>>());
                prop_assert!(given.is_err(), "refusals: {credit:?} gives {given:?} for {broken:?}");
            }
        }
    }
    Ok(())
}

/// Checks that members with equal rewards get exactly 0, even if different turns earned them: the last reward of each
/// member is replaced, so that the sum is `total`.
///
/// Not for credits that discount, because returns then differ if the turns differ.
///
/// # Errors
///
/// Fails with the advantages.
pub fn check_equal_rewards(
    credit: &dyn Credit,
    rewards: &[Vec<f64>],
    total: f64,
) -> TestCaseResult {
    let ending = |turns: &Vec<f64>| {
        let (_, before) = turns.split_last().expect("a member has turns");
        let last = total - before.iter().sum::<f64>();
        [before, &[last]].concat()
    };
    let flat: Vec<Vec<f64>> = rewards.iter().map(ending).collect();
    let advantages = assigned(credit, &rewarded(&flat))?;
    prop_assert!(
        advantages.iter().flatten().all(|one| *one == 0.0),
        "equal rewards: {credit:?} gives {advantages:?} for the rewards {flat:?}"
    );
    Ok(())
}

/// Checks that a constant added to the last reward of every member changes nothing.
///
/// Not for credits that discount: the constant then weighs less in longer episodes.
///
/// # Errors
///
/// Fails with the advantages that differ.
pub fn check_common_reward(
    credit: &dyn Credit,
    rewards: &[Vec<f64>],
    constant: f64,
) -> TestCaseResult {
    let mut shifted = rewards.to_vec();
    for turns in &mut shifted {
        *turns.last_mut().expect("a member has turns") += constant;
    }
    let straight = assigned(credit, &rewarded(rewards))?;
    let actual = assigned(credit, &rewarded(&shifted))?;
    prop_assert!(
        near(&actual, &straight),
        "common reward: {credit:?} gives {actual:?} instead of {straight:?} with {constant} added to each member"
    );
    Ok(())
}

/// Checks that the unit of the rewards, `factor` > 0, changes nothing.
///
/// For credits that divide by a standard deviation without an epsilon.
///
/// # Errors
///
/// Fails with the advantages that differ.
pub fn check_reward_unit(credit: &dyn Credit, rewards: &[Vec<f64>], factor: f64) -> TestCaseResult {
    let scaled: Vec<Vec<f64>> =
        rewards.iter().map(|turns| turns.iter().map(|one| one * factor).collect()).collect();
    let plain = assigned(credit, &rewarded(rewards))?;
    let actual = assigned(credit, &rewarded(&scaled))?;
    prop_assert!(
        near(&actual, &plain),
        "reward unit: {credit:?} gives {actual:?} instead of {plain:?} with rewards times {factor}"
    );
    Ok(())
}

/// Checks that another group of the batch, of any size and rewards, changes no advantage of this group.
///
/// With `has_batch_scale`, for credits that divide by a scale of the whole batch, all advantages of the group may change
/// by one positive factor.
///
/// # Errors
///
/// Fails with the advantages that differ.
pub fn check_groups_apart(
    credit: &dyn Credit,
    rewards: &[Vec<f64>],
    others: &[Vec<f64>],
    has_batch_scale: bool,
) -> TestCaseResult {
    let alone = assigned(credit, &rewarded(rewards))?.concat();
    let beside = beside(credit, rewards, others)?;
    let largest = |of: &[f64]| of.iter().fold(0.0_f64, |most, one| most.max(one.abs()));
    let factor = if largest(&alone) > 0.0 { largest(&beside) / largest(&alone) } else { 1.0 };
    let is_same = |(alone, beside): (&f64, &f64)| {
        // Tokens keep their advantages in f32.
        if has_batch_scale {
            (alone * factor - beside).abs() < 1e-5 * (1.0 + beside.abs())
        } else {
            f64::from(*alone as f32) == *beside
        }
    };
    let is_apart = alone.len() == beside.len() && alone.iter().zip(&beside).all(is_same);
    prop_assert!(
        is_apart,
        "groups apart: {credit:?} gives {beside:?} beside the rewards {others:?}, and {alone:?} alone"
    );
    Ok(())
}

/// Returns the advantages of the tokens of a group in a batch with another group.
fn beside(
    credit: &dyn Credit,
    rewards: &[Vec<f64>],
    others: &[Vec<f64>],
) -> Result<Vec<f64>, TestCaseError> {
    let (mut group, mut other) = (rewarded(rewards), rewarded(others));
    assign_batch_credit(credit, &mut [&mut group, &mut other])
        .map_err(|error| TestCaseError::fail(format!("groups apart: {credit:?}: {error}")))?;
    let advantages = group.iter().flat_map(Trajectory::sampled).map(|one| one.advantage);
    Ok(advantages.map(|one| f64::from(one.expect("credit reaches every token"))).collect())
}

/// Returns the advantages of a group, `[members][turns]`.
fn assigned(credit: &dyn Credit, group: &[Trajectory]) -> Result<Vec<Vec<f64>>, TestCaseError> {
    credit
        .assign(&group.iter().collect::<Vec<_>>())
        .map_err(|error| TestCaseError::fail(format!("{credit:?} refuses finite rewards: {error}")))
}

fn near(a: &[Vec<f64>], b: &[Vec<f64>]) -> bool {
    let pairs = || a.iter().flatten().zip(b.iter().flatten());
    a.iter().map(Vec::len).eq(b.iter().map(Vec::len))
        && pairs().all(|(a, b)| (a - b).abs() <= 1e-7 * (1.0 + a.abs().max(b.abs())))
}
