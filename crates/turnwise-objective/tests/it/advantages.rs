//! Advantages of a group.

use proptest::prelude::*;
use turnwise_objective::{
    AdvantageError, GroupAdvantage, Std, by_anchor_state, has_zero_variance, leave_one_out,
    mean_only, mean_std, mean_with_std_of, minus_mean_return, minus_mean_return_at_turn,
    minus_mean_return_of_others, normalised_over_all_turns, normalised_over_batch,
    per_turn_index_biased, standard_deviation,
};

use crate::support::*;

const RULES: [GroupAdvantage; 5] = [
    GroupAdvantage::MeanStd { std: Std::Sample, epsilon: 0.0 },
    GroupAdvantage::MeanStd { std: Std::Sample, epsilon: 1e-6 },
    GroupAdvantage::MeanStd { std: Std::Population, epsilon: 0.0 },
    GroupAdvantage::MeanOnly,
    GroupAdvantage::LeaveOneOut,
];

/// The rules whose result does not depend on the scale of the rewards.
const SCALE_FREE: [GroupAdvantage; 2] = [RULES[0], RULES[2]];

fn rewards() -> impl Strategy<Value = Vec<f64>> {
    let reward = prop_oneof![Just(0.0), Just(1.0), -5.0..5.0];
    prop::collection::vec(reward, 2..20)
        .prop_filter("differing rewards", |r: &Vec<f64>| r.iter().any(|x| (x - r[0]).abs() > 1e-3))
}

proptest! {
    // Objective 11
    #[test]
    fn p11_a_group_of_equal_rewards_gets_exactly_zero(
        reward in prop_oneof![
            prop::sample::select(vec![0.1, 1.0 / 3.0, 100.3, 1e30, -1e30, f64::MAX, 5e-324, 0.0, -0.0]),
            any::<f32>().prop_filter("finite", |r| r.is_finite()).prop_map(f64::from),
            any::<f64>().prop_filter("finite", |r| r.is_finite()),
        ],
        size in 1usize..40,
    ) {
        let group = vec![reward; size];
        for rule in RULES {
            let advantages = rule.of(&group).unwrap();
            prop_assert_eq!(&advantages, &vec![0.0; size], "{:?}", rule);
            prop_assert!(advantages.iter().all(|a| *a as f32 == 0.0));
        }
        prop_assert_eq!(mean_with_std_of(&group, 0.0, 0.0).unwrap(), vec![0.0; size]);
        prop_assert_eq!(standard_deviation(&group, Std::Sample).unwrap(), 0.0);
        prop_assert!(has_zero_variance(&group));
    }

    // Objective 11
    #[test]
    fn p11_a_group_of_one_gets_zero_and_never_its_reward(reward in -1e6..1e6) {
        for rule in RULES {
            prop_assert_eq!(rule.of(&[reward]).unwrap(), [0.0]);
        }
        prop_assert_eq!(minus_mean_return_of_others(&[vec![reward, reward]]).unwrap(), [[0.0, 0.0]]);
    }

    // Objective 11
    #[test]
    fn p11_a_reward_that_is_not_finite_is_an_error_that_names_it(
        mut group in rewards(),
        at in any::<prop::sample::Index>(),
        value in prop::sample::select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY]),
    ) {
        let member = at.index(group.len());
        group[member] = value;
        let named = |error: &AdvantageError, turn| {
            matches!(error, AdvantageError::NonFinite { member: m, turn: t, .. } if (*m, *t) == (member, turn))
        };
        for rule in RULES {
            prop_assert!(named(&rule.of(&group).unwrap_err(), None));
        }
        let turns: Vec<Vec<f64>> = group.iter().map(|&reward| vec![0.0, reward]).collect();
        prop_assert!(named(&minus_mean_return(&turns).unwrap_err(), Some(1)));
        prop_assert!(named(&minus_mean_return_of_others(&turns).unwrap_err(), Some(1)));
        prop_assert!(named(&normalised_over_all_turns(&turns, Std::Sample, 0.0).unwrap_err(), Some(1)));
        prop_assert!(named(&per_turn_index_biased(&turns, Std::Sample, 0.0).unwrap_err(), Some(1)));
    }

    // Objective 12
    #[test]
    fn p12_advantages_sum_to_zero(group in rewards()) {
        for rule in RULES {
            let advantages = rule.of(&group).unwrap();
            let size: f64 = advantages.iter().map(|a| a.abs()).sum();
            prop_assert!(advantages.iter().sum::<f64>().abs() <= 1e-14 * size, "{:?}", rule);
        }
    }

    // Objective 12
    #[test]
    fn p12_normalised_advantages_have_standard_deviation_one(group in rewards()) {
        for std in [Std::Sample, Std::Population] {
            let advantages = mean_std(&group, std, 0.0).unwrap();
            prop_assert!(close(standard_deviation(&advantages, std).unwrap(), 1.0, 1e-13));
        }
    }

    // Objective 12
    #[test]
    fn p12_a_common_offset_changes_nothing(group in rewards(), offset in -100.0..100.0) {
        let shifted: Vec<f64> = group.iter().map(|reward| reward + offset).collect();
        for rule in RULES {
            // The offset itself rounds the rewards, by 1e-14; the spread is at least 1e-3.
            prop_assert!(all_close(&rule.of(&group).unwrap(), &rule.of(&shifted).unwrap(), 1e-9), "{:?}", rule);
        }
    }

    // Objective 12
    #[test]
    fn p12_a_common_positive_factor_changes_nothing_that_is_normalised(group in rewards(), exponent in -300i32..=300) {
        let scaled: Vec<f64> = group.iter().map(|reward| reward * 10f64.powi(exponent)).collect();
        for rule in SCALE_FREE {
            prop_assert!(all_close(&rule.of(&group).unwrap(), &rule.of(&scaled).unwrap(), 1e-12), "{:?}", rule);
        }
        // Powers of two are exact, and so is the answer.
        let doubled: Vec<f64> = group.iter().map(|reward| reward * 2f64.powi(exponent)).collect();
        for rule in SCALE_FREE {
            prop_assert_eq!(rule.of(&group).unwrap(), rule.of(&doubled).unwrap());
        }
        let of = |group: &[f64]| {
            let groups = [group.to_vec(), group.iter().rev().map(|reward| 2.0 * reward).collect()];
            normalised_over_batch(&groups, Std::Sample, 0.0).unwrap().concat()
        };
        prop_assert!(all_close(&of(&group), &of(&scaled), 1e-12));
        let turns = |group: &[f64]| {
            let turns: Vec<Vec<f64>> = group.iter().map(|reward| vec![reward / 3.0, *reward]).collect();
            let all = normalised_over_all_turns(&turns, Std::Sample, 0.0).unwrap();
            [all, per_turn_index_biased(&turns, Std::Sample, 0.0).unwrap()].concat().concat()
        };
        prop_assert!(all_close(&turns(&group), &turns(&scaled), 1e-12));
    }

    // Field 10
    #[test]
    fn rounding_is_no_difference_at_any_scale(
        terms in prop::collection::vec(0.001_f64..5.0, 2..60),
        exponent in -290i32..290,
        size in 2usize..9,
    ) {
        // One sum, with its terms added in as many orders as there are members.
        let scale = 10f64.powi(exponent);
        let group: Vec<f64> = (0..size)
            .map(|member| {
                let (first, second) = terms.split_at(member * terms.len() / size);
                second.iter().chain(first).map(|term| term * scale).sum()
            })
            .collect();
        for rule in SCALE_FREE {
            prop_assert_eq!(rule.of(&group).unwrap(), vec![0.0; size]);
        }
        prop_assert!(has_zero_variance(&group));
        prop_assert!(!has_zero_variance(&[group[0], f64::INFINITY]));
        prop_assert!(!has_zero_variance(&[f64::NAN, group[0]]));
        let batch = normalised_over_batch(&[group.clone(), group], Std::Sample, 0.0).unwrap();
        prop_assert_eq!(batch.concat(), vec![0.0; 2 * size]);
    }

    #[test]
    fn rewards_at_both_ends_of_f64_are_normalised(low in 0.5_f64..1.0, high in 0.5_f64..1.0) {
        let group = [-low * f64::MAX, high * f64::MAX];
        let expected = 0.5_f64.sqrt();
        let advantages = mean_std(&group, Std::Sample, 0.0).unwrap();
        prop_assert!(all_close(&advantages, &[-expected, expected], 1e-12));
        let batch = normalised_over_batch(&[group.to_vec(), vec![1.0, 1.0]], Std::Population, 0.0);
        let root = 2f64.sqrt();
        prop_assert!(all_close(&batch.unwrap().concat(), &[-root, root, 0.0, 0.0], 1e-12));
    }

    // Objective 12
    #[test]
    fn p12_advantages_follow_a_permutation_of_the_rewards(group in rewards(), by in 0usize..20, reversed in any::<bool>()) {
        let mut positions: Vec<usize> = (0..group.len()).collect();
        positions.rotate_left(by % group.len());
        if reversed {
            positions.reverse();
        }
        let permuted: Vec<f64> = positions.iter().map(|&position| group[position]).collect();
        for rule in RULES {
            let advantages = rule.of(&group).unwrap();
            let expected: Vec<f64> = positions.iter().map(|&position| advantages[position]).collect();
            prop_assert!(all_close(&rule.of(&permuted).unwrap(), &expected, 1e-13), "{:?}", rule);
        }
    }

    // Objective 12
    #[test]
    fn p12_leave_one_out_compares_with_the_others(group in rewards()) {
        let advantages = leave_one_out(&group).unwrap();
        for (member, advantage) in advantages.iter().enumerate() {
            let others: f64 = group.iter().enumerate().filter(|(other, _)| *other != member).map(|(_, r)| r).sum();
            prop_assert!(close(*advantage, group[member] - others / (group.len() - 1) as f64, 1e-13));
        }
    }
}

proptest! {
    // Objective 11 and 12
    #[test]
    fn p12_a_batch_wide_scale_centres_every_group_and_leaves_flat_ones_at_zero(
        groups in prop::collection::vec(rewards(), 1..5),
        flat in -3.0..3.0,
    ) {
        let mut batch = groups.clone();
        batch.push(vec![flat; 4]);
        batch.push(vec![flat]);
        let advantages = normalised_over_batch(&batch, Std::Population, 0.0).unwrap();
        for (group, advantages) in batch.iter().zip(&advantages) {
            let size: f64 = advantages.iter().map(|a| a.abs()).sum();
            prop_assert!(advantages.iter().sum::<f64>().abs() <= 1e-13 * size);
            prop_assert_eq!(advantages.len(), group.len());
        }
        prop_assert_eq!(&advantages[groups.len()], &vec![0.0; 4]);
        prop_assert_eq!(&advantages[groups.len() + 1], &vec![0.0]);
        let all = advantages.concat();
        prop_assert!(close(standard_deviation(&all, Std::Population).unwrap(), 1.0, 1e-12));
    }

    // Objective 11 and 12
    #[test]
    fn p12_anchor_states_never_mix_and_what_one_turn_alone_met_gets_zero(
        turns in prop::collection::vec(prop::collection::vec((-2.0..2.0, 0u8..5), 0..6), 1..6),
    ) {
        let returns: Vec<Vec<f64>> = turns.iter().map(|member| member.iter().map(|turn| turn.0).collect()).collect();
        let anchors: Vec<Vec<u8>> = turns.iter().map(|member| member.iter().map(|turn| turn.1).collect()).collect();
        for rule in RULES {
            let advantages = by_anchor_state(&returns, &anchors, rule).unwrap();
            for state in 0..5 {
                let at = |values: &[Vec<f64>]| -> Vec<f64> {
                    values.iter().flatten().zip(anchors.iter().flatten()).filter(|(_, a)| **a == state).map(|(v, _)| *v).collect()
                };
                prop_assert_eq!(at(&advantages), rule.of(&at(&returns)).unwrap());
            }
        }
        prop_assert!(turns.len() == 1 || by_anchor_state(&returns, &anchors[1..], RULES[0]).is_err());
    }

    // Objective 11
    #[test]
    fn p11_a_baseline_per_turn_gives_equal_members_and_a_member_alone_exactly_zero(rewards in prop::collection::vec(-2.0..2.0, 1..5), n in 1usize..6) {
        let group = vec![rewards; n];
        let zeros: Vec<Vec<f64>> = group.iter().map(|turns| vec![0.0; turns.len()]).collect();
        prop_assert_eq!(minus_mean_return_at_turn(&group).unwrap(), zeros);
    }
}

#[test]
fn scales_that_are_negative_or_not_finite_are_refused() {
    for value in [-1e-9, f64::NAN, f64::INFINITY] {
        let refused = mean_std(&[1.0, 0.0], Std::Sample, value).unwrap_err();
        assert!(matches!(refused, AdvantageError::InvalidScale { .. }));
        let refused = mean_with_std_of(&[1.0, 0.0], value, 0.0).unwrap_err();
        assert!(matches!(refused, AdvantageError::InvalidScale { .. }));
    }
    assert_eq!(mean_only(&[f64::MAX, f64::MIN]).unwrap_err(), AdvantageError::Overflow);
}

#[test]
fn an_empty_group_has_no_advantages() {
    for rule in RULES {
        assert!(rule.of(&[]).unwrap().is_empty());
    }
    assert!(has_zero_variance(&[]));
}
