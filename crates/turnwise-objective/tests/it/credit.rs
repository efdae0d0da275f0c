//! Credit of turns and of their tokens.

use proptest::prelude::*;
use turnwise_objective::{
    AdvantageError, Clip, Objective, broadcast_outcome, minus_mean_return, mix, reward_to_go,
    reward_to_go_with_outcome, spread_over_tokens,
};

use crate::support::*;

fn turns() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(-2.0..2.0, 1..8)
}

proptest! {
    // Objective 19
    #[test]
    fn p19_a_reward_to_go_is_its_definition(rewards in turns(), gamma in 0.0..1.0) {
        let to_go = reward_to_go(&rewards, gamma);
        for (turn, value) in to_go.iter().enumerate() {
            let rest = rewards[turn..].iter().enumerate();
            prop_assert!(close(*value, rest.map(|(later, r)| gamma.powf(later as f64) * r).sum(), 1e-13));
        }
    }

    // Objective 19
    #[test]
    fn p19_credit_is_conserved_without_discount(rewards in turns(), outcome in -2.0..2.0) {
        let to_go = reward_to_go_with_outcome(&rewards, outcome, 1.0);
        prop_assert!(close(to_go[0], rewards.iter().sum::<f64>() + outcome, 1e-13));
        prop_assert!(to_go.windows(2).zip(&rewards).all(|(pair, reward)| close(pair[0] - pair[1], *reward, 1e-13)));
    }

    // Objective 19
    #[test]
    fn p19_a_terminal_reward_to_go_is_the_outcome_on_every_turn(
        outcomes in prop::collection::vec((-2.0..2.0, 1usize..6), 2..8),
    ) {
        let to_go: Vec<Vec<f64>> =
            outcomes.iter().map(|&(outcome, n_turns)| reward_to_go_with_outcome(&vec![0.0; n_turns], outcome, 1.0)).collect();
        let rewards: Vec<f64> = outcomes.iter().map(|outcome| outcome.0).collect();
        let n_turns: Vec<usize> = outcomes.iter().map(|outcome| outcome.1).collect();
        let advantages = turnwise_objective::mean_only(&rewards).unwrap();
        let broadcast = broadcast_outcome(&advantages, &n_turns).unwrap();
        prop_assert_eq!(minus_mean_return(&to_go).unwrap(), broadcast);
    }

    // Objective 19
    #[test]
    fn p19_a_broadcast_outcome_makes_gspo_token_gspo(
        (clip, _, mut tokens) in placed_tokens(),
        advantage in advantage(),
        cut in any::<prop::sample::Index>(),
    ) {
        let cut = cut.index(tokens.len());
        let credit = broadcast_outcome(&[advantage], &[2]).unwrap().remove(0);
        tokens.advantages = spread_over_tokens(&credit, &[cut, tokens.len() - cut]).unwrap();
        let (token, token_gradient) = evaluate(&gspo_token(clip), &tokens.per_token());
        let (sequence, sequence_gradient) = evaluate(&gspo(clip), &tokens.uniform(advantage));
        prop_assert!(close(token.loss, sequence.loss, 1e-14));
        prop_assert!(all_close(&token_gradient, &sequence_gradient, 1e-14));
    }

    // Objective 19
    #[test]
    fn p19_where_turns_and_rows_begin_changes_nothing(
        clip in clips(),
        tokens in f32_tokens(1),
        cut in any::<prop::sample::Index>(),
    ) {
        // One ratio group stored as two rows, in the other order.
        let cut = cut.index(tokens.len());
        let rows: Vec<usize> = (cut..tokens.len()).chain(0..cut).collect();
        let (whole, gradient) = evaluate(&gspo_token(clip), &tokens.per_token());
        let (grouped, grouped_gradient) = evaluate(&gspo_token(clip), &tokens.pick(&rows).per_token());
        prop_assert_eq!(whole.stats.log_ratio, grouped.stats.log_ratio);
        for (position, coefficient) in rows.iter().zip(grouped_gradient) {
            prop_assert_eq!(gradient[*position], coefficient);
        }
    }

    // Objective 20
    #[test]
    fn p20_credit_is_not_averaged(
        (clip, tokens) in clips().prop_flat_map(|clip| (Just(clip), tokens_at(clip, ClipSide::Inside))),
        credit in 0.1..3.0,
    ) {
        let (n, half) = (tokens.len(), tokens.len().div_ceil(2));
        let mut tokens = tokens.pick(&(0..2 * half).map(|position| position % n).collect::<Vec<_>>());
        let inside = Clip::new(0.9, 2.0).unwrap();
        let clip = if tokens.log_ratio().abs() < 1e-4 { clip } else { inside };
        tokens.advantages = spread_over_tokens(&[credit, -credit], &[half, half]).unwrap();
        let (_, gradient) = evaluate(&gspo_token(clip), &tokens.per_token());
        let (first, second) = gradient.split_at(half);
        prop_assert!(first.iter().all(|c| *c < 0.0));
        prop_assert!(second.iter().all(|c| *c > 0.0));
        prop_assert!(first.iter().zip(second).all(|(a, b)| *a == -b));
    }
}

// Objective 19
#[test]
fn p19_two_turns_that_drift_apart_are_clipped_apart_but_not_together() {
    let clip = Clip::PAPER_GSPO;
    let tokens = Tokens::drifted(&[1e-3, 1e-3, -1e-3, -1e-3], &[1.0; 4]);
    let clipped = |tokens: &Tokens, advantage: f64| {
        let stats = evaluate(&gspo(clip), &tokens.uniform(advantage)).0.stats;
        stats.n_clipped_low + stats.n_clipped_high
    };
    assert_eq!(clipped(&tokens, 1.0) + clipped(&tokens, -1.0), 0);
    assert_eq!(clipped(&tokens.pick(&[0, 1]), 1.0), 2);
    assert_eq!(clipped(&tokens.pick(&[2, 3]), -1.0), 2);
}

// Objective 20
#[test]
fn p20_gspo_does_not_take_credit_it_would_have_to_average() {
    let tokens = Tokens::drifted(&[0.0; 2], &[1.0, -1.0]);
    assert!(gspo(Clip::PAPER_GSPO).evaluate(&tokens.per_token(), &mut [0.0; 2]).is_err());
}

#[test]
fn trajectories_without_turns_keep_their_place() {
    let to_go = [vec![], vec![2.0, 1.0], vec![], vec![0.0]];
    assert_eq!(minus_mean_return(&to_go).unwrap(), [vec![], vec![1.0, 0.0], vec![], vec![-1.0]]);
    assert!(reward_to_go(&[], 0.9).is_empty());
    assert!(reward_to_go_with_outcome(&[], 1.0, 0.9).is_empty());
}

#[test]
fn numbers_for_other_turns_are_refused() {
    let mismatch =
        |slice, expected, actual| AdvantageError::LengthMismatch { slice, expected, actual };
    assert_eq!(broadcast_outcome(&[1.0], &[1, 2]).unwrap_err(), mismatch("n_turns", 1, 2));
    assert_eq!(spread_over_tokens(&[1.0, 2.0], &[3]).unwrap_err(), mismatch("n_tokens", 2, 1));
    assert_eq!(mix(&[1.0], &[], 1.0, 1.0).unwrap_err(), mismatch("outcome_advantages", 0, 1));
}
