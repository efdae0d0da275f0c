//! The contract of credit, on everything that is shipped.

use proptest::prelude::*;
use turnwise_objective::{GroupAdvantage, Std, normalised_over_batch};
use turnwise_training::{
    Credit, GigpoCredit, OutcomeCredit, ReinforcePlusPlusCredit, ReturnCredit, TurnBaselineCredit,
    TurnCredit, TurnIndexBiasedCredit, assign_batch_credit, assign_credit,
};
use turnwise_trajectory::Trajectory;

use crate::support::rewarded;

/// With γ = 1, under which a constant added to every episode's last turn is a constant added to every return.
fn credits() -> Vec<Box<dyn Credit>> {
    let mut credits = normalised();
    for advantage in [PUBLISHED, GroupAdvantage::MeanOnly, GroupAdvantage::LeaveOneOut] {
        credits.push(Box::new(OutcomeCredit { advantage }));
        let turn = TurnCredit { advantage, gamma: 1.0, outcome_weight: 0.5, turn_weight: 2.0 };
        credits.push(Box::new(turn));
        credits.push(Box::new(GigpoCredit { advantage, gamma: 1.0, step_weight: 1.0 }));
    }
    credits.push(Box::new(ReinforcePlusPlusCredit { std: Std::Sample, epsilon: 1e-6 }));
    credits.push(Box::new(TurnBaselineCredit { gamma: 1.0 }));
    credits
}

/// With the epsilon of published implementations.
const PUBLISHED: GroupAdvantage = GroupAdvantage::MeanStd { std: Std::Sample, epsilon: 1e-6 };

/// Those that do not depend on the unit of the rewards.
fn normalised() -> Vec<Box<dyn Credit>> {
    let advantage = GroupAdvantage::MeanStd { std: Std::Sample, epsilon: 0.0 };
    let gamma = 1.0;
    vec![
        Box::new(ReturnCredit { gamma }),
        Box::new(OutcomeCredit { advantage }),
        Box::new(TurnCredit { advantage, gamma, outcome_weight: 0.5, turn_weight: 2.0 }),
        Box::new(GigpoCredit { advantage, gamma, step_weight: 1.0 }),
        Box::new(ReinforcePlusPlusCredit { std: Std::Sample, epsilon: 0.0 }),
        Box::new(TurnIndexBiasedCredit { gamma }),
    ]
}

/// Those, and some that discount.
fn all_credits() -> Vec<Box<dyn Credit>> {
    let advantage = GroupAdvantage::MeanOnly;
    let mut credits = credits();
    for gamma in [0.0, 0.5] {
        credits.push(Box::new(ReturnCredit { gamma }));
        let turn = TurnCredit { advantage, gamma, outcome_weight: 1.0, turn_weight: 1.0 };
        credits.push(Box::new(turn));
        credits.push(Box::new(GigpoCredit { advantage, gamma, step_weight: 0.5 }));
        credits.push(Box::new(TurnIndexBiasedCredit { gamma }));
        credits.push(Box::new(TurnBaselineCredit { gamma }));
    }
    credits
}

fn assigned(credit: &dyn Credit, group: &[Trajectory]) -> Vec<Vec<f64>> {
    credit.assign(&group.iter().collect::<Vec<_>>()).expect("finite rewards")
}

fn near(a: &[Vec<f64>], b: &[Vec<f64>]) -> bool {
    let pairs = || a.iter().flatten().zip(b.iter().flatten());
    a.iter().map(Vec::len).eq(b.iter().map(Vec::len))
        && pairs().all(|(a, b)| (a - b).abs() <= 1e-7 * (1.0 + a.abs().max(b.abs())))
}

/// Rewards in steps of a quarter, so that groups are often flat and never nearly so.
fn groups() -> impl Strategy<Value = Vec<Vec<f64>>> {
    let reward = (-8_i8..9).prop_map(|quarters| f64::from(quarters) / 4.0);
    prop::collection::vec(prop::collection::vec(reward, 1..5), 1..7)
}

proptest! {
    /// One finite advantage for each turn of each member.
    #[test]
    fn every_turn_gets_a_finite_advantage(rewards in groups()) {
        for credit in all_credits() {
            let advantages = assigned(&*credit, &rewarded(&rewards));
            prop_assert!(advantages.iter().map(Vec::len).eq(rewards.iter().map(Vec::len)));
            prop_assert!(advantages.iter().flatten().all(|advantage| advantage.is_finite()));
        }
    }

    #[test]
    fn permuting_the_members_permutes_the_advantages(
        (rewards, order) in groups().prop_flat_map(|rewards| {
            let order: Vec<usize> = (0..rewards.len()).collect();
            (Just(rewards), Just(order).prop_shuffle())
        }),
    ) {
        let group = rewarded(&rewards);
        let permuted: Vec<Trajectory> = order.iter().map(|place| group[*place].clone()).collect();
        for credit in all_credits() {
            let straight = assigned(&*credit, &group);
            let expected: Vec<Vec<f64>> =
                order.iter().map(|place| straight[*place].clone()).collect();
            prop_assert!(near(&assigned(&*credit, &permuted), &expected), "{credit:?}");
        }
    }

    /// Rollouts 13.23 and Objective 11: decided on the episodes' rewards, whatever their turns.
    #[test]
    fn equal_rewards_give_exactly_nothing(
        rewards in groups(),
        total in -8_i8..9,
    ) {
        let flat: Vec<Vec<f64>> = rewards.into_iter().map(|turns| ending_at(turns, total)).collect();
        for credit in credits() {
            let advantages = assigned(&*credit, &rewarded(&flat));
            prop_assert!(advantages.iter().flatten().all(|one| *one == 0.0), "{credit:?}");
        }
    }

    /// rollouts section 2: a group of one.
    #[test]
    fn a_group_of_one_gets_exactly_nothing(rewards in groups()) {
        for credit in all_credits() {
            let advantages = assigned(&*credit, &rewarded(&rewards[..1]));
            prop_assert!(advantages.iter().flatten().all(|one| *one == 0.0), "{credit:?}");
        }
    }

    /// Every stream of every credit conserves what it says, and the last is what reaches the tokens.
    #[test]
    fn every_stream_conserves_what_it_says(rewards in groups()) {
        let group = rewarded(&rewards);
        let members: Vec<&Trajectory> = group.iter().collect();
        for credit in all_credits() {
            let mut batch = [credit.streams(&members).expect("finite rewards")];
            credit.finish(&mut batch).expect("finite rewards");
            for stream in batch[0].all() {
                let missing = batch[0].imbalance(stream, &members);
                prop_assert!(missing <= 1e-9, "{credit:?} {}: {missing}", stream.name);
            }
            prop_assert_eq!(&batch[0].advantage.values, &assigned(&*credit, &group));
        }
    }

    /// Objective 12: what another group of the batch earned, and how large it is, changes nobody's advantage but by a scale.
    #[test]
    fn groups_of_any_size_never_mix(first in groups(), second in groups(), offset in -8_i8..9) {
        for credit in all_credits() {
            let of = |others: &[Vec<f64>]| {
                let mut batch = [rewarded(&first), rewarded(others)];
                let [one, other] = &mut batch;
                assign_batch_credit(&*credit, &mut [one, other]).expect("finite rewards");
                let [one, _] = batch;
                let advantages = one.iter().flat_map(Trajectory::sampled).map(|one| one.advantage);
                advantages.map(|one| f64::from(one.expect("scored"))).collect::<Vec<f64>>()
            };
            let alone = assigned(&*credit, &rewarded(&first)).concat();
            let moved: Vec<Vec<f64>> = second
                .iter()
                .map(|turns| turns.iter().map(|reward| reward + f64::from(offset)).collect())
                .collect();
            let (beside, beside_moved) = (of(&second), of(&moved));
            // A scale of the whole batch keeps signs and proportions; every other credit keeps the numbers.
            let largest = |of: &[f64]| of.iter().fold(0.0_f64, |most, one| most.max(one.abs()));
            let scale = if credit.name() == "reinforce_plus_plus" && largest(&alone) > 0.0 {
                largest(&beside) / largest(&alone)
            } else {
                1.0
            };
            for ((alone, beside), moved) in alone.iter().zip(&beside).zip(&beside_moved) {
                prop_assert!((alone * scale - beside).abs() < 1e-5 * (1.0 + beside.abs()), "{credit:?}");
                prop_assert!(credit.name() == "reinforce_plus_plus" || beside == moved, "{credit:?}");
            }
        }
    }

    /// REINFORCE++ has one scale for the whole batch, whatever its groups.
    #[test]
    fn batch_wide_credit_is_that_of_the_pure_function(groups in prop::collection::vec(groups(), 1..5)) {
        let credit = ReinforcePlusPlusCredit { std: Std::Sample, epsilon: 1e-6 };
        let mut batch: Vec<Vec<Trajectory>> = groups.iter().map(|group| rewarded(group)).collect();
        let totals: Vec<Vec<f64>> =
            groups.iter().map(|group| group.iter().map(|turns| turns.iter().sum()).collect()).collect();
        let expected = normalised_over_batch(&totals, Std::Sample, 1e-6).expect("finite rewards");
        let mut views: Vec<&mut [Trajectory]> = batch.iter_mut().map(Vec::as_mut_slice).collect();
        let streams = assign_batch_credit(&credit, &mut views).expect("finite rewards");
        for (streams, expected) in streams.iter().zip(expected) {
            for (turns, expected) in streams.advantage.values.iter().zip(expected) {
                prop_assert!(turns.iter().all(|one| (one - expected).abs() <= 1e-9 * (1.0 + expected.abs())));
            }
        }
    }

    /// Objective 12
    #[test]
    fn a_constant_added_to_every_episode_changes_nothing(
        rewards in groups(),
        constant in -100_i8..100,
    ) {
        let shifted: Vec<Vec<f64>> = rewards
            .iter()
            .cloned()
            .map(|mut turns| {
                *turns.last_mut().expect("a turn") += f64::from(constant);
                turns
            })
            .collect();
        for credit in credits() {
            let straight = assigned(&*credit, &rewarded(&rewards));
            prop_assert!(near(&assigned(&*credit, &rewarded(&shifted)), &straight), "{credit:?}");
        }
    }

    /// Section 3 of the rollouts: every token of a turn has its turn's credit, and no other token has any.
    #[test]
    fn every_token_of_a_turn_has_the_credit_of_the_turn(rewards in groups()) {
        for credit in all_credits() {
            let mut group = rewarded(&rewards);
            let advantages = assigned(&*credit, &group);
            assign_credit(&*credit, &mut group).expect("finite rewards");
            for (member, advantages) in group.iter().zip(advantages) {
                for (node, advantage) in member.turn_nodes().zip(advantages) {
                    let mut tokens = node.sampled();
                    prop_assert!(tokens.all(|token| token.advantage == Some(advantage as f32)));
                }
            }
        }
    }
}

/// The turns with another last reward, so that they sum up to so many quarters.
fn ending_at(mut turns: Vec<f64>, quarters: i8) -> Vec<f64> {
    turns.pop();
    turns.push(f64::from(quarters) / 4.0 - turns.iter().sum::<f64>());
    turns
}

/// The rule is the same where the second part looks at turns alone.
#[test]
fn equal_rewards_give_nothing_without_a_discount_either() {
    let group = rewarded(&[vec![0.0, 1.0], vec![0.0, 1.0], vec![1.0, 0.0]]);
    for credit in all_credits() {
        let advantages = assigned(&*credit, &group);
        let is_flat = advantages.iter().flatten().all(|one| *one == 0.0);
        let discounts = format!("{credit:?}").starts_with("ReturnCredit { gamma: 0");
        assert!(is_flat || discounts, "{credit:?}: {advantages:?}");
    }
}

/// Rollouts 13.9: whatever slipped through is an error here and no number.
#[test]
fn a_reward_that_is_no_number_is_an_error() {
    for bad in [f64::NAN, f64::INFINITY] {
        let group = rewarded(&[vec![0.0, bad], vec![1.0, 0.0]]);
        for credit in all_credits() {
            assert!(credit.assign(&group.iter().collect::<Vec<_>>()).is_err(), "{credit:?}");
        }
    }
}

/// Objective 20: credit that a turn earned alone stays with it.
#[test]
fn turn_credit_tells_the_turns_of_an_episode_apart() {
    let credit = TurnCredit {
        advantage: GroupAdvantage::MeanOnly,
        gamma: 0.0,
        outcome_weight: 0.0,
        turn_weight: 1.0,
    };
    let advantages = assigned(&credit, &rewarded(&[vec![1.0, 0.0], vec![0.0, 0.0]]));
    assert!(advantages[0][0] > 0.0 && advantages[0][1] < 0.0);
}

/// Objective 11: what rewards differ by when they are added in another order is no signal.
#[test]
fn rewards_that_differ_by_rounding_have_no_advantages() {
    let groups = [
        vec![vec![0.1, 0.2, 0.3], vec![0.3, 0.2, 0.1]],
        // Their sum is far smaller than their terms.
        vec![vec![0.1, 0.2, -0.3], vec![0.0]],
        vec![vec![1e6, 0.1, -1e6], vec![0.1]],
    ];
    for rewards in groups {
        for scale in [1e-300, 1e-9, 1.0, 1e9, 1e300] {
            let group = rewarded(&scaled(&rewards, scale));
            assert!(scale != 1.0 || group[0].reward() != group[1].reward(), "they do differ");
            for credit in normalised() {
                let advantages = assigned(&*credit, &group);
                let is_flat = advantages.iter().flatten().all(|one| *one == 0.0);
                assert!(is_flat, "{credit:?}: {advantages:?}");
            }
        }
    }
}

fn scaled(rewards: &[Vec<f64>], scale: f64) -> Vec<Vec<f64>> {
    rewards.iter().map(|turns| turns.iter().map(|reward| reward * scale).collect()).collect()
}

proptest! {
    /// Objective 12, down to the smallest normal numbers: rewards of 1e-7 taught nothing once.
    #[test]
    fn the_unit_of_the_rewards_changes_nothing(rewards in groups(), exponent in -300_i32..=300) {
        let (small, plain) = (rewarded(&scaled(&rewards, 10f64.powi(exponent))), rewarded(&rewards));
        for credit in normalised() {
            let (small, plain) = (assigned(&*credit, &small), assigned(&*credit, &plain));
            prop_assert!(near(&small, &plain), "{credit:?}: {small:?} {plain:?}");
        }
    }
}
