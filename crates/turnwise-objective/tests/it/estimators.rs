//! Expected gradients of the estimators, on a problem small enough to enumerate.
//!
//! An episode has up to three turns. After each of the first two the policy continues with
//! probability σ(θ_k) or stops; the third is the last. Rewards are arbitrary. All groups of a size
//! are enumerated with their probabilities, so expected gradients are exact, without sampling.

use proptest::prelude::*;
use turnwise_objective::{
    Advantages, Clip, GroupAdvantage, GspoToken, LengthWeight, Sequence, Std, broadcast_outcome,
    by_anchor_state, evaluate_step, leave_one_out, mean_only, mean_std, minus_mean_return,
    minus_mean_return_at_turn, minus_mean_return_of_others, mix, normalised_over_all_turns,
    normalised_over_batch, per_turn_index_biased, reward_to_go,
};

use crate::support::*;

/// The rewards of the three possible episodes, and the two parameters.
#[derive(Clone, Debug)]
struct Stopping {
    rewards: [Vec<f64>; 3],
    theta: [f64; 2],
}

type Credit = dyn Fn(&[Vec<f64>]) -> Vec<Vec<f64>>;

impl Stopping {
    fn go_on(&self, turn: usize) -> f64 {
        1.0 / (1.0 + (-self.theta[turn]).exp())
    }

    /// Returns the probability of stopping after turn 0, turn 1, or at the end.
    fn probabilities(&self) -> [f64; 3] {
        let (first, second) = (self.go_on(0), self.go_on(1));
        [1.0 - first, first * (1.0 - second), first * second]
    }

    /// Returns ∂log π/∂θ_k of the decision at turn k of an episode; the last turn has no decision.
    fn score(&self, episode: usize, turn: usize) -> f64 {
        if episode > turn { 1.0 - self.go_on(turn) } else { -self.go_on(turn) }
    }

    /// Returns log π of the decisions of an episode.
    fn logprobs(&self, episode: usize) -> Vec<f64> {
        let decide = |turn: usize| {
            if episode > turn { self.go_on(turn).ln() } else { (1.0 - self.go_on(turn)).ln() }
        };
        (0..=episode).map(|turn| if turn < 2 { decide(turn) } else { 0.0 }).collect()
    }

    /// Returns ∇ E[return], by summing over the episodes.
    fn true_gradient(&self) -> [f64; 2] {
        let mut gradient = [0.0; 2];
        for (episode, probability) in self.probabilities().into_iter().enumerate() {
            let value: f64 = self.rewards[episode].iter().sum();
            for (turn, slot) in gradient.iter_mut().enumerate().take(episode + 1) {
                *slot += probability * value * self.score(episode, turn);
            }
        }
        gradient
    }

    /// Returns the expectation, over all groups of a size, of GSPO-token's gradient with this
    /// credit, on policy.
    fn expected_gradient(
        &self,
        size: usize,
        length_weight: LengthWeight,
        credit: &Credit,
    ) -> [f64; 2] {
        let mut expected = [0.0; 2];
        for first in 0..=size {
            for second in 0..=size - first {
                let counts = [first, second, size - first - second];
                let episodes: Vec<usize> =
                    (0..3).flat_map(|episode| vec![episode; counts[episode]]).collect();
                let probability = self.probability_of(&counts);
                let gradient = self.group_gradient(&episodes, length_weight, credit);
                (0..2).for_each(|turn| expected[turn] += probability * gradient[turn]);
            }
        }
        expected
    }

    /// Returns the multinomial probability of a group with these counts.
    fn probability_of(&self, counts: &[usize; 3]) -> f64 {
        let log_factorial = |n: usize| (1..=n).map(|i| (i as f64).ln()).sum::<f64>();
        let size = counts.iter().sum();
        let parts = counts.iter().zip(self.probabilities());
        (log_factorial(size)
            + parts.map(|(&n, p)| n as f64 * p.ln() - log_factorial(n)).sum::<f64>())
        .exp()
    }

    /// Returns the ascent direction in θ of one group, through the objective.
    fn group_gradient(
        &self,
        episodes: &[usize],
        length_weight: LengthWeight,
        credit: &Credit,
    ) -> [f64; 2] {
        let rewards: Vec<Vec<f64>> =
            episodes.iter().map(|&episode| self.rewards[episode].clone()).collect();
        let (credit, logprobs) =
            (credit(&rewards), [0, 1, 2].map(|episode| self.logprobs(episode)));
        let sequences: Vec<Sequence> = episodes
            .iter()
            .zip(&credit)
            .map(|(&episode, credit)| {
                Sequence::new(&logprobs[episode], &logprobs[episode], Advantages::PerToken(credit))
                    .unwrap()
            })
            .collect();
        let step = evaluate_step(&GspoToken { clip: Clip::PAPER_GSPO, length_weight }, &sequences)
            .unwrap();
        let mut gradient = [0.0; 2];
        for (&episode, coefficients) in episodes.iter().zip(&step.gradients) {
            for (turn, (slot, coefficient)) in gradient.iter_mut().zip(coefficients).enumerate() {
                *slot -= coefficient * self.score(episode, turn);
            }
        }
        gradient
    }
}

/// The reward of a turn may depend on its own decision and on earlier ones, never on a later one.
fn stopping() -> impl Strategy<Value = Stopping> {
    let reward = prop_oneof![Just(0.0), Just(1.0), -2.0..2.0];
    (prop::collection::vec(reward, 5), prop::array::uniform2(-1.5..1.5)).prop_map(|(r, theta)| {
        Stopping { rewards: [vec![r[0]], vec![r[1], r[2]], vec![r[1], r[3], r[4]]], theta }
    })
}

/// Returns a problem whose two decisions have gradients in different directions, for estimators
/// that are right only in the limit.
fn example() -> Stopping {
    Stopping { rewards: [vec![0.0], vec![-0.5, 1.5], vec![-0.5, -0.25, 0.5]], theta: [0.4, -0.3] }
}

fn by_anchor(rewards: &[Vec<f64>], rule: GroupAdvantage) -> Vec<Vec<f64>> {
    let anchors: Vec<Vec<usize>> = rewards.iter().map(|turns| (0..turns.len()).collect()).collect();
    by_anchor_state(&to_go(rewards), &anchors, rule).unwrap()
}

fn returns(rewards: &[Vec<f64>]) -> Vec<f64> {
    rewards.iter().map(|turns| turns.iter().sum()).collect()
}

fn to_go(rewards: &[Vec<f64>]) -> Vec<Vec<f64>> {
    rewards.iter().map(|turns| reward_to_go(turns, 1.0)).collect()
}

fn broadcast(advantages: &[f64], rewards: &[Vec<f64>]) -> Vec<Vec<f64>> {
    broadcast_outcome(advantages, &rewards.iter().map(Vec::len).collect::<Vec<_>>()).unwrap()
}

/// Returns |sin| of the angle between two gradients: how far the direction is off.
fn misdirection(a: [f64; 2], b: [f64; 2]) -> f64 {
    (a[0] * b[1] - a[1] * b[0]).abs() / (a[0].hypot(a[1]) * b[0].hypot(b[1]))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    // Objective 21
    #[test]
    fn p21_unbiased_estimators_have_the_true_gradient(problem in stopping(), size in 2usize..6) {
        let truth = problem.true_gradient();
        let estimators: [(&str, f64, &Credit); 7] = [
            ("reward to go", 1.0, &|rewards| to_go(rewards)),
            ("minus mean return of others", 1.0, &|rewards| minus_mean_return_of_others(&to_go(rewards)).unwrap()),
            ("minus mean return at turn", 1.0, &|rewards| minus_mean_return_at_turn(&to_go(rewards)).unwrap()),
            ("leave one out", 1.0, &|rewards| broadcast(&leave_one_out(&returns(rewards)).unwrap(), rewards)),
            ("half of each", 1.0, &|rewards| {
                let turns = minus_mean_return_of_others(&to_go(rewards)).unwrap();
                mix(&leave_one_out(&returns(rewards)).unwrap(), &turns, 0.5, 0.5).unwrap()
            }),
            // A reward in its own baseline scales the gradient by 1 − 1/n, in every direction.
            ("minus mean return", 1.0 - 1.0 / size as f64, &|rewards| minus_mean_return(&to_go(rewards)).unwrap()),
            ("mean only", 1.0 - 1.0 / size as f64, &|rewards| broadcast(&mean_only(&returns(rewards)).unwrap(), rewards)),
        ];
        for (name, factor, credit) in estimators {
            let expected = problem.expected_gradient(size, LengthWeight::Tokens, credit);
            prop_assert!(all_close(&expected, &truth.map(|g| factor * g), 1e-12), "{}: {:?} {:?}", name, expected, truth);
        }
    }

    // Objective 21
    #[test]
    fn p21_comparing_by_turn_index_cannot_see_what_going_on_is_worth(
        worth in 0.1..5.0,
        theta in -1.5..1.5,
        size in 2usize..6,
    ) {
        // Every first turn earns 1; continuing earns `worth` and then ends.
        let problem = Stopping { rewards: [vec![1.0], vec![1.0, worth], vec![1.0, worth, 0.0]], theta: [theta, 0.0] };
        let p = problem.go_on(0);
        prop_assert!(close(problem.true_gradient()[0], p * (1.0 - p) * worth, 1e-13));
        let biased: &Credit = &|rewards| per_turn_index_biased(rewards, Std::Sample, 1e-6).unwrap();
        prop_assert_eq!(problem.expected_gradient(size, LengthWeight::Tokens, biased), [0.0, 0.0]);
    }
}

// Objective 21
#[test]
fn p21_normalised_estimators_point_the_true_way_in_the_limit() {
    let problem = example();
    let truth = problem.true_gradient();
    let estimators: [(&str, &Credit); 5] = [
        ("mean and std", &|rewards| {
            broadcast(&mean_std(&returns(rewards), Std::Sample, 1e-6).unwrap(), rewards)
        }),
        ("over all turns", &|rewards| {
            normalised_over_all_turns(&to_go(rewards), Std::Sample, 1e-6).unwrap()
        }),
        ("over the batch", &|rewards| {
            let batch = normalised_over_batch(&[returns(rewards)], Std::Sample, 1e-6).unwrap();
            broadcast(&batch[0], rewards)
        }),
        // The state of this problem is the number of turns so far.
        ("by anchor state", &|rewards| by_anchor(rewards, GroupAdvantage::MeanOnly)),
        ("episode and anchor state", &|rewards| {
            let outcome = mean_only(&returns(rewards)).unwrap();
            mix(&outcome, &by_anchor(rewards, GroupAdvantage::MeanOnly), 1.0, 1.0).unwrap()
        }),
    ];
    for (name, credit) in estimators {
        let off = |size| {
            misdirection(problem.expected_gradient(size, LengthWeight::Tokens, credit), truth)
        };
        let (small, large) = (off(4), off(48));
        assert!(large < 0.02 && large < small / 4.0, "{name}: {small} {large}");
    }
}

// Objective 21
#[test]
fn p21_biased_estimators_stay_wrong_in_the_limit() {
    let problem = example();
    let truth = problem.true_gradient();
    let estimators: [(&str, &Credit); 4] = [
        // Every state gets its own scale.
        ("anchor states over their own std", &|rewards| {
            by_anchor(rewards, GroupAdvantage::MeanStd { std: Std::Sample, epsilon: 1e-6 })
        }),
        ("returns by turn index", &|rewards| {
            per_turn_index_biased(&to_go(rewards), Std::Sample, 1e-6).unwrap()
        }),
        ("rewards by turn index", &|rewards| {
            per_turn_index_biased(rewards, Std::Sample, 1e-6).unwrap()
        }),
        // The normalisation is not the cause: an immediate reward is the credit of a policy that
        // does not look ahead.
        ("immediate rewards", &|rewards| {
            normalised_over_all_turns(rewards, Std::Sample, 1e-6).unwrap()
        }),
    ];
    for (name, credit) in estimators {
        let off = |size| {
            misdirection(problem.expected_gradient(size, LengthWeight::Tokens, credit), truth)
        };
        assert!(off(48) > 0.05, "{name}: {}", off(48));
    }
}

// Objective 21
#[test]
fn p21_the_mean_over_tokens_bends_the_gradient_where_lengths_differ() {
    let problem = example();
    let credit: &Credit = &|rewards| broadcast(&leave_one_out(&returns(rewards)).unwrap(), rewards);
    let off = |weight| {
        misdirection(problem.expected_gradient(4, weight, credit), problem.true_gradient())
    };
    assert!(off(LengthWeight::Tokens) < 1e-12);
    assert!(off(LengthWeight::Mean) > 0.05, "{}", off(LengthWeight::Mean));
}
