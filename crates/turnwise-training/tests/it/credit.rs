//! The contract of credit, on everything that is shipped.

use proptest::prelude::*;
use turnwise_objective::{GroupAdvantage, Std, normalised_over_batch};
use turnwise_testkit::credits::{
    check_common_reward, check_contract, check_equal_rewards, check_groups_apart,
    check_member_order, check_reward_unit, groups,
};
use turnwise_testkit::objectives::orders;
use turnwise_testkit::rewarded;
use turnwise_training::{
    Credit, GigpoCredit, OutcomeCredit, ReinforcePlusPlusCredit, ReturnCredit, TurnBaselineCredit,
    TurnCredit, TurnIndexBiasedCredit, assign_batch_credit, assign_credit,
};
use turnwise_trajectory::Trajectory;

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

proptest! {
    /// Shape, order, streams, groups of one (rollouts section 2) and refusals (rollouts 13.9).
    #[test]
    fn every_credit_keeps_the_contract(rewards in groups()) {
        for credit in all_credits() {
            check_contract(&*credit, &rewards)?;
        }
    }

    #[test]
    fn permuting_the_members_permutes_the_advantages(
        (rewards, order) in groups().prop_flat_map(|rewards| {
            let order = orders(rewards.len());
            (Just(rewards), order)
        }),
    ) {
        for credit in all_credits() {
            check_member_order(&*credit, &rewards, &order)?;
        }
    }

    /// Rollouts 13.23 and Objective 11: decided on the episodes' rewards, whatever their turns.
    #[test]
    fn equal_rewards_give_exactly_nothing(rewards in groups(), quarters in -8_i8..9) {
        for credit in credits() {
            check_equal_rewards(&*credit, &rewards, f64::from(quarters) / 4.0)?;
        }
    }

    /// Objective 12: what another group of the batch earned, and how large it is, changes nobody's advantage but by a scale.
    #[test]
    fn groups_of_any_size_never_mix(first in groups(), second in groups()) {
        for credit in all_credits() {
            let has_batch_scale = credit.name() == "reinforce_plus_plus";
            check_groups_apart(&*credit, &first, &second, has_batch_scale)?;
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
        for credit in credits() {
            check_common_reward(&*credit, &rewards, f64::from(constant))?;
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
        for credit in normalised() {
            check_reward_unit(&*credit, &rewards, 10f64.powi(exponent))?;
        }
    }
}
