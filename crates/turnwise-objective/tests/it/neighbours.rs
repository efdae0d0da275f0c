//! The neighbours of GSPO: their gradients against their definitions, and their shared properties.

use proptest::prelude::*;
use turnwise_objective::{
    Advantages, Cispo, Clip, Dapo, DrGrpo, Gmpo, Grpo, GspoTurn, LengthWeight, Objective,
    ObjectiveError, Reinforce, Sapo, evaluate_step, presets,
};
use turnwise_testkit::objectives::{
    check_clip_sides, check_extremes, check_gradient_of, check_on_policy, check_scaling,
    check_signs,
};

use crate::support::*;

/// The sequence at which derivatives are taken: the frozen parts of every definition.
type Frozen<'a> = &'a Tokens;

/// J of one sequence before the denominator, at other log-probabilities, as its paper defines it.
type Surrogate = Box<dyn Fn(Frozen<'_>, &[f64]) -> f64>;

fn ratios(frozen: Frozen<'_>, logprobs: &[f64]) -> Vec<f64> {
    logprobs.iter().zip(&frozen.behavior_logprobs).map(|(l, b)| (l - b).exp()).collect()
}

fn clipped(ratio: f64, advantage: f64, clip: Clip) -> f64 {
    let bounded = ratio.clamp(1.0 - clip.low(), 1.0 + clip.high());
    let value = (ratio * advantage).min(bounded * advantage);
    match clip.dual() {
        Some(dual) if advantage < 0.0 => value.max(dual * advantage),
        _ => value,
    }
}

/// Returns Σ_t f(r_t, A_t, log π_t at the point, log π_t), times a weight.
fn token_sum(
    weight: impl Fn(usize) -> f64 + 'static,
    term: impl Fn(f64, f64, f64, f64) -> f64 + 'static,
) -> Surrogate {
    Box::new(move |frozen, logprobs| {
        let (ratios, at) = (ratios(frozen, logprobs), ratios(frozen, &frozen.logprobs));
        let terms = (0..frozen.len())
            .map(|t| term(ratios[t], frozen.advantages[t], at[t], logprobs[t]))
            .sum::<f64>();
        weight(frozen.len()) * terms
    })
}

fn cases(clip: Clip) -> Vec<(Box<dyn Objective>, Surrogate)> {
    let (low, high) = (1.0 - clip.low(), 1.0 + clip.high());
    let dual = clip.with_dual(high + 0.3).unwrap();
    let mean = |n: usize| 1.0 / n as f64;
    let gate = |r: f64, a: f64| {
        let tau = if a > 0.0 { 1.0 } else { 1.05 };
        4.0 / tau / (1.0 + (-tau * (r - 1.0)).exp()) * a
    };
    vec![
        (Box::new(Dapo { clip }), token_sum(|_| 1.0, move |r, a, _, _| clipped(r, a, clip))),
        (
            Box::new(DrGrpo { clip, max_tokens: 12 }),
            token_sum(|_| 1.0 / 12.0, move |r, a, _, _| clipped(r, a, clip)),
        ),
        (Box::new(Grpo { clip: dual }), token_sum(mean, move |r, a, _, _| clipped(r, a, dual))),
        (
            Box::new(Cispo::new(Some(clip.low()), clip.high()).unwrap()),
            token_sum(|_| 1.0, move |_, a, at, l| at.clamp(low, high) * a * l),
        ),
        (
            Box::new(Cispo::new(None, clip.high()).unwrap()),
            token_sum(|_| 1.0, move |_, a, at, l| at.min(high) * a * l),
        ),
        (Box::new(Sapo::PAPER), token_sum(mean, move |r, a, _, _| gate(r, a))),
        (
            Box::new(Reinforce { length_weight: LengthWeight::SqrtTokens }),
            token_sum(|n| (n as f64).sqrt() / n as f64, |_, a, _, l| a * l),
        ),
    ]
}

proptest! {
    // Objective 4 and 7
    #[test]
    fn p04_every_token_objective_is_its_definition_and_its_gradient_the_finite_difference(clip in clips(), tokens in tokens()) {
        for (objective, surrogate) in cases(clip) {
            check_gradient_of(&*objective, &tokens, |frozen, logprobs| -surrogate(frozen, logprobs))?;
        }
    }

    // Objective 4 and 7
    #[test]
    fn p04_gmpo_is_its_definition_and_its_gradient_the_finite_difference(tokens in tokens(), advantage in nonzero_advantage()) {
        let tokens = Tokens { advantages: vec![advantage; tokens.len()], ..tokens };
        check_gradient_of(&Gmpo::PAPER, &tokens, |frozen, logprobs| {
            let cut = logprobs.iter().zip(&frozen.behavior_logprobs).map(|(l, b)| if advantage > 0.0 { (l - b).min(0.4) } else { (l - b).max(-0.4) });
            -advantage * mean(&cut.collect::<Vec<_>>()).exp()
        })?;
        let (evaluated, _) = evaluate(&Gmpo::PAPER, &tokens.uniform(advantage));
        let is_out = |d: &&f64| if advantage > 0.0 { **d > 0.4 } else { **d < -0.4 };
        let n_out = tokens.log_ratios().iter().filter(is_out).count();
        prop_assert_eq!(evaluated.stats.n_clipped_high, if advantage > 0.0 { n_out } else { 0 });
        prop_assert_eq!(evaluated.stats.n_clipped_low, if advantage < 0.0 { n_out } else { 0 });
    }

    // Objective 5: at the behaviour policy every gradient is REINFORCE's, with the objective's own weight.
    #[test]
    fn p05_on_policy_every_objective_has_the_gradient_of_reinforce(clip in clips(), tokens in tokens_near_policy()) {
        for objective in every_policy_objective(clip) {
            check_on_policy(&*objective, &tokens)?;
        }
    }

    // Objective 12
    #[test]
    fn p12_scaling_advantages_scales_every_loss(clip in clips(), tokens in tokens(), scale in 0.0..8.0) {
        for objective in every_policy_objective(clip) {
            check_scaling(&*objective, &tokens, scale)?;
        }
    }

    // Objective 26: inside every range, a good token becomes more probable and a bad one less.
    #[test]
    fn p26_an_advantage_in_range_always_has_a_gradient_of_its_sign(tokens in tokens_near_policy()) {
        for objective in every_policy_objective(Clip::PAPER_GRPO) {
            check_signs(&*objective, &tokens)?;
        }
    }

    // Objective 19: a ratio per turn is the trajectory's iff there is one turn.
    #[test]
    fn p19_a_ratio_per_turn_with_one_turn_is_gspo_token((clip, _, tokens) in placed_tokens(), n_empty in 0usize..3) {
        let gspo_turn = GspoTurn { clip, length_weight: LengthWeight::Mean };
        let mut turns = vec![0; n_empty];
        turns.push(tokens.len());
        for sequence in [tokens.per_token(), tokens.uniform(0.5)] {
            let one = evaluate(&gspo_turn, &sequence.with_turns(&turns).unwrap());
            prop_assert_eq!(one, evaluate(&gspo_token(clip), &sequence));
        }
    }

    // Objective 19 and 20: each turn is the GSPO-token of its own tokens, weighed by its length.
    #[test]
    fn p19_each_turn_is_the_gspo_token_of_its_tokens(
        clip in clips(), tokens in tokens(),
        cut in any::<prop::sample::Index>(),
        length_weight in prop::sample::select(WEIGHTS.to_vec()),
    ) {
        let (n, cut) = (tokens.len(), cut.index(tokens.len() + 1));
        let gspo_turn = GspoTurn { clip, length_weight };
        let (whole, gradient) = evaluate(&gspo_turn, &tokens.per_token().with_turns(&[cut, n - cut]).unwrap());
        let (mut loss, mut expected, mut n_clipped) = (0.0, Vec::new(), 0);
        for turn in [0..cut, cut..n] {
            let turn = tokens.pick(&turn.collect::<Vec<_>>());
            if turn.is_empty() { continue; }
            let (own, own_gradient) = evaluate(&gspo_token(clip), &turn.per_token());
            let share = length_weight.of(n) * turn.len() as f64 / n as f64;
            loss += share * own.loss;
            expected.extend(own_gradient.iter().map(|c| share * c));
            n_clipped += own.stats.n_clipped_low + own.stats.n_clipped_high;
        }
        prop_assert!(close(whole.loss, loss, 1e-13));
        prop_assert!(all_close(&gradient, &expected, 1e-14));
        prop_assert_eq!(whole.stats.n_clipped_low + whole.stats.n_clipped_high, n_clipped);
        prop_assert!(close(whole.stats.log_ratio, tokens.log_ratio(), 1e-13));
    }

    // Objective 7: the dual clip removes the gradient of a negative advantage above its bound, and no other.
    #[test]
    fn p07_a_dual_clip_only_takes_negative_advantages_above_its_bound(clip in clips(), tokens in tokens()) {
        let bound = 1.2 + clip.high();
        let dual = clip.with_dual(bound).unwrap();
        check_clip_sides(&Grpo { clip: dual }, dual, &tokens, &tokens.log_ratios())?;
        let (plain, plain_gradient) = evaluate(&Grpo { clip }, &tokens.per_token());
        let (evaluated, gradient) = evaluate(&Grpo { clip: dual }, &tokens.per_token());
        let changed = gradient.iter().zip(&plain_gradient).filter(|(now, before)| now != before);
        prop_assert!(changed.clone().all(|(now, _)| *now == 0.0));
        let n_taken = changed.count();
        prop_assert_eq!(evaluated.stats.n_clipped_dual, n_taken);
        prop_assert!(evaluated.loss <= plain.loss);
        prop_assert_eq!(evaluated.loss == plain.loss, n_taken == 0);
        // With a sequence's ratio, all its tokens with a negative advantage lose their gradient at
        // once.
        let (sequence, gradient) = evaluate(&gspo_token(dual), &tokens.per_token());
        let is_beyond = tokens.log_ratio().exp() > bound;
        let n_negative = tokens.advantages.iter().filter(|a| **a < 0.0).count();
        prop_assert_eq!(sequence.stats.n_clipped_dual, if is_beyond { n_negative } else { 0 });
        prop_assert!(!is_beyond || gradient.iter().all(|c| *c == 0.0));
        prop_assert!(sequence.stats.gap >= 0.0);
    }

    // Objective 8
    #[test]
    fn p08_a_cut_weight_is_whole_at_its_bound_and_cut_one_ulp_beyond(log_ratio in 1e-6..0.69) {
        let ratio: f64 = f64::exp(log_ratio);
        let tokens = Tokens { logprobs: vec![log_ratio], behavior_logprobs: vec![0.0], advantages: vec![1.0] };
        let truncated = |bound: f64| evaluate(&Cispo::new(None, bound - 1.0).unwrap(), &tokens.per_token()).0.stats.n_truncated;
        prop_assert_eq!((truncated(ratio), truncated(ratio.next_up()), truncated(ratio.next_down())), (0, 0, 1));
        let clipped = |bound: f64| evaluate(&Gmpo::new(0.0, bound).unwrap(), &tokens.per_token()).0.stats.n_clipped_high;
        prop_assert_eq!((clipped(log_ratio), clipped(log_ratio.next_up()), clipped(log_ratio.next_down())), (0, 0, 1));
    }
}

// Objective 19
#[test]
fn p19_two_turns_that_drift_apart_are_both_clipped_by_a_ratio_per_turn_and_not_by_the_trajectory_s()
{
    let tokens = Tokens::drifted(&[1e-3, 1e-3, -1e-3, -1e-3], &[1.0, 1.0, -1.0, -1.0]);
    let sequence = tokens.per_token().with_turns(&[2, 2]).unwrap();
    let clip = Clip::PAPER_GSPO;
    let (trajectory, gradient) = evaluate(&gspo_token(clip), &sequence);
    assert_eq!(trajectory.stats.n_clipped_low + trajectory.stats.n_clipped_high, 0);
    assert!(gradient.iter().all(|c| *c != 0.0));
    let gspo_turn = GspoTurn { clip, length_weight: LengthWeight::Mean };
    let (turns, gradient) = evaluate(&gspo_turn, &sequence);
    assert_eq!((turns.stats.n_clipped_low, turns.stats.n_clipped_high), (2, 2));
    assert_eq!(gradient, [0.0; 4]);
    assert!(turns.stats.log_ratio.abs() < 1e-15);
}

#[test]
fn a_ratio_per_turn_refuses_a_sequence_whose_turns_it_does_not_know() {
    let tokens = Tokens::drifted(&[0.0; 3], &[1.0; 3]);
    let gspo_turn = GspoTurn { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Mean };
    assert!(gspo_turn.needs_turns() && !gspo_token(Clip::PAPER_GSPO).needs_turns());
    let refused = gspo_turn.evaluate(&tokens.per_token(), &mut [0.0; 3]).unwrap_err();
    assert_eq!(refused, ObjectiveError::MissingColumn { column: "turns" });
    assert!(tokens.per_token().with_turns(&[1, 1]).is_err());
    let mut broken = tokens.clone();
    broken.logprobs[2] = f64::NAN;
    let sequence = broken.per_token().with_turns(&[2, 1]).unwrap();
    let refused = gspo_turn.evaluate(&sequence, &mut [0.0; 3]).unwrap_err();
    assert_eq!(refused.to_string(), "logprob of token 2 is NaN");
}

// Objective 16: an impossible token, and ratios that overflow.
#[test]
fn p16_the_neighbours_are_finite_where_ratios_are_not() {
    for objective in every_objective(Clip::PAPER_GRPO) {
        check_extremes(&*objective).unwrap();
    }
    let far = Tokens::drifted(&[2000.0, 2000.0], &[-1.0; 2]);
    let (evaluated, gradient) = evaluate(&Gmpo::PAPER, &far.uniform(-1.0));
    assert_eq!((evaluated.stats.n_capped, gradient[0] > 0.0), (2, true));
}

// Objective 12: every constructor refuses invalid bounds.
#[test]
fn settings_outside_their_range_are_refused() {
    for value in [-0.1, f64::NAN, f64::INFINITY] {
        assert!(Gmpo::new(value, 0.4).is_err() && Gmpo::new(0.4, value).is_err());
        assert!(Sapo::new(value, 1.0).is_err() && Sapo::new(1.0, value).is_err());
        assert!(Cispo::new(None, value).is_err() && Cispo::new(Some(value), 0.2).is_err());
    }
    assert!(Sapo::new(0.0, 1.0).is_err());
    for bound in [1.27, 1.0, f64::INFINITY, f64::NAN] {
        let refused = Clip::PAPER_GRPO.with_dual(bound);
        assert!(matches!(refused, Err(ObjectiveError::InvalidDualClip { .. })), "{bound}");
    }
}

#[test]
fn gmpo_refuses_advantages_that_differ() {
    let tokens = Tokens::drifted(&[0.0; 2], &[1.0, -1.0]);
    assert!(Gmpo::PAPER.needs_uniform_advantages());
    let refused = Gmpo::PAPER.evaluate(&tokens.per_token(), &mut [0.0; 2]);
    assert_eq!(refused, Err(ObjectiveError::NonUniformAdvantages { token: 1 }));
}

#[test]
fn every_preset_can_be_made_and_has_a_name_of_its_own_and_a_source() {
    let presets = presets();
    let mut names: Vec<&str> = presets.iter().map(|preset| preset.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), presets.len());
    let tokens = Tokens::drifted(&[0.0; 3], &[1.0; 3]);
    let sequence = tokens.per_token().with_turns(&[1, 2]).unwrap();
    for preset in presets {
        let objective = preset.objective().unwrap();
        assert!(!preset.source.is_empty());
        let step = evaluate_step(&*objective, &[sequence]).unwrap();
        assert!(step.gradients[0].iter().all(|c| *c < 0.0), "{}", preset.name);
    }
}

// Objective 25: two sequences of the tabulated losses, computed by hand.
#[test]
fn p25_reinforce_is_the_weighted_sum_of_log_probabilities() {
    let tokens = Tokens {
        logprobs: vec![-0.5, -1.5],
        behavior_logprobs: vec![-9.0; 2],
        advantages: vec![2.0, -1.0],
    };
    for (length_weight, factor) in [(LengthWeight::Mean, 0.5), (LengthWeight::Tokens, 1.0)] {
        let (evaluated, gradient) = evaluate(&Reinforce { length_weight }, &tokens.per_token());
        assert_eq!(evaluated.loss, -0.5 * factor);
        assert_eq!(gradient, [-2.0 * factor, factor]);
    }
    let impossible = Tokens { logprobs: vec![f64::NEG_INFINITY, -1.5], ..tokens };
    let uniform = impossible.uniform(1.0);
    assert!(matches!(uniform.advantages(), Advantages::Uniform(_)));
    assert!(evaluate(&Reinforce::RLOO, &uniform).0.loss.is_finite());
}
