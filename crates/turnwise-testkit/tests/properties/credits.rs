use proptest::prelude::*;
use turnwise_objective::{AdvantageError, GroupAdvantage, Std};
use turnwise_testkit::credits::*;
use turnwise_testkit::objectives::orders;
use turnwise_training::{
    Conservation, Credit, CreditStreams, OutcomeCredit, ReinforcePlusPlusCredit,
};
use turnwise_trajectory::Trajectory;

use crate::{failure, tells_apart};

const OUTCOME: OutcomeCredit =
    OutcomeCredit { advantage: GroupAdvantage::MeanStd { std: Std::Sample, epsilon: 0.0 } };

/// Credit with a mistake in it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mistaken {
    /// Leaves out the last turn of each member.
    DropsATurn,
    /// Gives the first member more.
    PrefersTheFirst,
    /// Says that turns sum to 0 that do not.
    ConservesNothing,
    /// Gives rewards without a baseline.
    RawRewards,
    /// Takes NaN for 0.
    IgnoresNumbers,
    /// Subtracts the mean reward of all groups of the batch.
    MixesGroups,
}

impl Credit for Mistaken {
    fn name(&self) -> &'static str {
        "mistaken"
    }

    fn streams(&self, group: &[&Trajectory]) -> Result<CreditStreams, AdvantageError> {
        let rewards: Vec<Vec<f64>> = group.iter().map(|member| member.turn_rewards()).collect();
        if matches!(self, Self::RawRewards) {
            return Ok(CreditStreams::new(Vec::new(), rewards, Conservation::Nothing));
        }
        let mut streams = match OUTCOME.streams(group) {
            Err(_) if *self == Self::IgnoresNumbers => {
                let zeros = rewards.iter().map(|turns| vec![0.0; turns.len()]).collect();
                CreditStreams::new(Vec::new(), zeros, Conservation::Nothing)
            }
            streams => streams?,
        };
        let advantages = &mut streams.advantage;
        match self {
            Self::DropsATurn => {
                for turns in &mut advantages.values {
                    turns.pop();
                }
            }
            Self::PrefersTheFirst => advantages.values[0].iter_mut().for_each(|one| *one += 1.0),
            Self::ConservesNothing => {
                advantages.values.iter_mut().flatten().for_each(|one| *one += 1.0);
            }
            _ => {}
        }
        Ok(streams)
    }

    fn finish(&self, batch: &mut [CreditStreams]) -> Result<(), AdvantageError> {
        if *self == Self::MixesGroups && batch.len() > 1 {
            let all: Vec<f64> =
                batch.iter().flat_map(|one| one.advantage.values.concat()).collect();
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            for streams in batch {
                streams.advantage.values.iter_mut().flatten().for_each(|one| *one -= mean + 0.5);
            }
        }
        Ok(())
    }
}

/// A right and a wrong credit behind one type.
type Either<'a> = &'a dyn Credit;

#[test]
fn check_contract_finds_what_one_of_its_checks_finds() {
    assert_eq!(failure(groups(), |rewards| check_contract(&OUTCOME, &rewards)), None);
    let found = failure(groups(), |rewards| check_contract(&Mistaken::IgnoresNumbers, &rewards));
    assert!(found.is_some_and(|why| why.contains("refusals: ")));
}

#[test]
fn check_shape_finds_a_turn_without_an_advantage() {
    let (right, wrong): (Either<'_>, Either<'_>) = (&OUTCOME, &Mistaken::DropsATurn);
    tells_apart(right, wrong, "shape", groups, |credit, rewards| check_shape(credit, &rewards));
}

#[test]
fn check_member_order_finds_a_member_that_is_preferred() {
    let (right, wrong): (Either<'_>, Either<'_>) = (&OUTCOME, &Mistaken::PrefersTheFirst);
    let values = || {
        groups().prop_flat_map(|rewards| {
            let order = orders(rewards.len());
            (Just(rewards), order)
        })
    };
    tells_apart(right, wrong, "member order", values, |credit, (rewards, order)| {
        check_member_order(credit, &rewards, &order)
    });
}

#[test]
fn check_streams_finds_a_sum_that_is_not_what_it_says() {
    let (right, wrong): (Either<'_>, Either<'_>) = (&OUTCOME, &Mistaken::ConservesNothing);
    tells_apart(right, wrong, "streams", groups, |credit, rewards| check_streams(credit, &rewards));
}

#[test]
fn check_group_of_one_finds_a_raw_reward() {
    let (right, wrong): (Either<'_>, Either<'_>) = (&OUTCOME, &Mistaken::RawRewards);
    tells_apart(right, wrong, "group of one", groups, |credit, rewards| {
        check_group_of_one(credit, &rewards[0])
    });
}

#[test]
fn check_refusals_finds_a_reward_that_is_taken_for_0() {
    let (right, wrong): (Either<'_>, Either<'_>) = (&OUTCOME, &Mistaken::IgnoresNumbers);
    tells_apart(right, wrong, "refusals", groups, |credit, rewards| {
        check_refusals(credit, &rewards)
    });
}

#[test]
fn check_equal_rewards_finds_rewards_without_a_baseline() {
    let (right, wrong): (Either<'_>, Either<'_>) = (&OUTCOME, &Mistaken::RawRewards);
    tells_apart(right, wrong, "equal rewards", groups, |credit, rewards| {
        check_equal_rewards(credit, &rewards, 0.5)
    });
}

#[test]
fn check_common_reward_finds_rewards_without_a_baseline() {
    let (right, wrong): (Either<'_>, Either<'_>) = (&OUTCOME, &Mistaken::RawRewards);
    tells_apart(right, wrong, "common reward", groups, |credit, rewards| {
        check_common_reward(credit, &rewards, 3.0)
    });
}

#[test]
fn check_reward_unit_finds_a_difference_that_is_not_normalised() {
    let wrong = OutcomeCredit { advantage: GroupAdvantage::MeanOnly };
    let (right, wrong): (Either<'_>, Either<'_>) = (&OUTCOME, &wrong);
    tells_apart(right, wrong, "reward unit", groups, |credit, rewards| {
        check_reward_unit(credit, &rewards, 1e-3)
    });
}

#[test]
fn check_groups_apart_finds_a_mean_over_the_batch() {
    let values = || (groups(), groups());
    let batch_wide = ReinforcePlusPlusCredit { std: Std::Sample, epsilon: 0.0 };
    let wrong: Either<'_> = &Mistaken::MixesGroups;
    let rights: [(Either<'_>, bool); 2] = [(&OUTCOME, false), (&batch_wide, true)];
    for (right, has_batch_scale) in rights {
        tells_apart(right, wrong, "groups apart", values, |credit, (rewards, others)| {
            check_groups_apart(credit, &rewards, &others, has_batch_scale)
        });
    }
    // A scale of the batch is not granted to those that do not claim it.
    let found = failure(values(), |(rewards, others)| {
        check_groups_apart(&batch_wide, &rewards, &others, false)
    });
    assert!(found.is_some());
}
