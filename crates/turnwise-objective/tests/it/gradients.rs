//! The values and gradients of GSPO and GSPO-token: how they relate, and finite differences.

use proptest::prelude::*;
use turnwise_objective::{
    Advantages, Clip, Grpo, Gspo, GspoToken, LengthWeight, Objective, ObjectiveError, Sequence,
};

use crate::support::*;

/// Returns A_t·a_t: the advantage if its token has a gradient.
fn active(advantage: f64, side: Side) -> f64 {
    match side {
        Side::Above if advantage > 0.0 => 0.0,
        Side::Below if advantage < 0.0 => 0.0,
        _ => advantage,
    }
}

/// Returns (1/n) Σ_t min(s_t A_t, clip(s_t) A_t) with s_t = s·π_θ/π_θ0 and s, π_θ0 frozen: eq. 13
/// and 14 as written.
fn surrogate(clip: Clip, frozen: &Tokens, logprobs: &[f64]) -> f64 {
    let ratio = frozen.log_ratio().exp();
    let terms = logprobs.iter().zip(&frozen.logprobs).zip(&frozen.advantages).map(
        |((logprob, at), advantage)| {
            let ratio = ratio * (logprob - at).exp();
            (ratio * advantage).min(ratio.clamp(1.0 - clip.low(), 1.0 + clip.high()) * advantage)
        },
    );
    terms.sum::<f64>() / frozen.len() as f64
}

/// Returns the central difference of `f` in each log-probability.
fn finite_differences(logprobs: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let step = 1e-5;
    let at = |t: usize, by: f64| {
        let mut moved = logprobs.to_vec();
        moved[t] += by;
        f(&moved)
    };
    (0..logprobs.len()).map(|t| (at(t, step) - at(t, -step)) / (2.0 * step)).collect()
}

/// Returns the loss of `tokens` with other log-probabilities.
fn loss_at(
    objective: &dyn Objective,
    tokens: &Tokens,
    logprobs: &[f64],
    advantages: Advantages<'_>,
) -> f64 {
    evaluate(objective, &Sequence::new(logprobs, &tokens.behavior_logprobs, advantages).unwrap())
        .0
        .loss
}

proptest! {
    // Objective 1
    #[test]
    fn p01_uniform_advantages_make_gspo_and_gspo_token_one(
        (clip, _, mut tokens) in placed_tokens(),
        advantage in advantage(),
        weight in prop::sample::select(WEIGHTS.to_vec()),
    ) {
        tokens.advantages.fill(advantage);
        let (gspo, gspo_token) = (Gspo { clip, length_weight: weight }, GspoToken { clip, length_weight: weight });
        let (expected, expected_gradient) = evaluate(&gspo, &tokens.uniform(advantage));
        for (evaluated, gradient) in [
            evaluate(&gspo, &tokens.per_token()),
            evaluate(&gspo_token, &tokens.uniform(advantage)),
            evaluate(&gspo_token, &tokens.per_token()),
        ] {
            prop_assert!(close(evaluated.loss, expected.loss, 1e-14));
            prop_assert!(all_close(&gradient, &expected_gradient, 1e-14));
            let is_active = |gradient: &[f64]| gradient.iter().map(|c| *c != 0.0).collect::<Vec<_>>();
            prop_assert_eq!(is_active(&gradient), is_active(&expected_gradient));
            prop_assert_eq!(evaluated.stats, expected.stats);
        }
    }

    // Objective 2
    #[test]
    fn p02_the_gap_between_the_values_is_the_formula_and_never_negative((clip, side, tokens) in placed_tokens()) {
        let (token, _) = evaluate(&gspo_token(clip), &tokens.per_token());
        let (sequence, _) = evaluate(&gspo(clip), &tokens.uniform(tokens.mean_advantage()));
        let ratio = tokens.log_ratio().exp();
        let (lowered, raised) = (ratio.min(1.0 + clip.high()), ratio.max(1.0 - clip.low()));
        let positive = mean(&tokens.advantages.iter().map(|a| a.max(0.0)).collect::<Vec<_>>());
        let negative = mean(&tokens.advantages.iter().map(|a| (-a).max(0.0)).collect::<Vec<_>>());
        let gap = (raised - lowered) * positive.min(negative);
        prop_assert!(close(-token.loss, lowered * positive - raised * negative, 1e-13));
        prop_assert!(close(token.loss - sequence.loss, gap, 1e-13));
        prop_assert!(close(token.stats.gap, gap, 1e-13));
        prop_assert!(token.stats.gap >= 0.0);
        prop_assert_eq!(token.stats.gap == 0.0, side == Side::Inside || positive == 0.0 || negative == 0.0);
        prop_assert_eq!(sequence.stats.gap, 0.0);
    }

    // Objective 3
    #[test]
    fn p03_the_gradients_are_equal_exactly_when_the_predicate_says(
        (clip, side, mut tokens) in placed_tokens(),
        round in prop::collection::vec(prop::sample::select(vec![-2.0, -1.0, -0.5, 0.0, 0.5, 1.0]), 40),
        equal in prop::option::of(prop::sample::select(vec!["uniform", "positive", "negative", "zero"])),
    ) {
        let n = tokens.len();
        tokens.advantages = round[..n].to_vec();
        match equal {
            Some("uniform") => tokens.advantages.fill(round[0]),
            Some("positive") => tokens.advantages.iter_mut().for_each(|a| *a = a.abs() + 0.25),
            Some("negative") => tokens.advantages.iter_mut().for_each(|a| *a = -a.abs() - 0.25),
            Some("zero") => tokens.advantages.fill(0.0),
            _ => {}
        }
        let mean_advantage = tokens.mean_advantage();
        let (_, token) = evaluate(&gspo_token(clip), &tokens.per_token());
        let (_, sequence) = evaluate(&gspo(clip), &tokens.uniform(mean_advantage));
        let predicate = tokens.advantages.iter().all(|&a| (active(a, side) - active(mean_advantage, side)).abs() < 1e-9);
        prop_assert_eq!(all_close(&token, &sequence, 1e-12), predicate);
    }

    // Objective 4
    #[test]
    fn p04_the_gradient_of_gspo_is_the_finite_difference_of_its_value(
        (clip, _, tokens) in placed_tokens(),
        advantage in advantage(),
        weight in prop::sample::select(WEIGHTS.to_vec()),
    ) {
        let gspo = Gspo { clip, length_weight: weight };
        let (_, gradient) = evaluate(&gspo, &tokens.uniform(advantage));
        let value = |logprobs: &[f64]| loss_at(&gspo, &tokens, logprobs, Advantages::Uniform(advantage));
        prop_assert!(all_close(&gradient, &finite_differences(&tokens.logprobs, value), 1e-8));
    }

    // Objective 4
    #[test]
    fn p04_the_gradient_of_gspo_token_is_the_finite_difference_of_the_surrogate_with_s_frozen(
        (clip, _, tokens) in placed_tokens(),
        weight in prop::sample::select(WEIGHTS.to_vec()),
    ) {
        let (evaluated, gradient) = evaluate(&GspoToken { clip, length_weight: weight }, &tokens.per_token());
        let loss = |logprobs: &[f64]| -weight.of(tokens.len()) * surrogate(clip, &tokens, logprobs);
        prop_assert!(close(evaluated.loss, loss(&tokens.logprobs), 1e-12));
        prop_assert!(all_close(&gradient, &finite_differences(&tokens.logprobs, loss), 1e-8));
    }

    // Objective 4
    #[test]
    fn p04_the_gradient_of_gspo_token_is_not_the_finite_difference_of_its_value_unless_advantages_are_uniform(
        (clip, tokens) in clips().prop_flat_map(|clip| (Just(clip), tokens_at(clip, Side::Inside))),
    ) {
        let gspo_token = gspo_token(clip);
        let (_, gradient) = evaluate(&gspo_token, &tokens.per_token());
        let value = |logprobs: &[f64]| loss_at(&gspo_token, &tokens, logprobs, Advantages::PerToken(&tokens.advantages));
        let differences = finite_differences(&tokens.logprobs, value);
        let uniform = tokens.advantages.iter().all(|&a| (a - tokens.advantages[0]).abs() < 1e-4);
        prop_assert_eq!(all_close(&gradient, &differences, 1e-8), uniform);
        // The finite difference of the value gives the impostor: the mean credit on every token.
        let spread = -tokens.log_ratio().exp() * tokens.mean_advantage() / tokens.len() as f64;
        prop_assert!(differences.iter().all(|&difference| close(difference, spread, 1e-8)));
    }

    // Objective 4
    #[test]
    fn p04_the_gradient_of_grpo_is_the_finite_difference_of_its_value(
        clip in clips(),
        tokens in prop::collection::vec((sides(), 0.0..1.0, advantage()), 1..30),
    ) {
        let (low, high) = ((-clip.low()).ln_1p(), clip.high().ln_1p());
        let log_ratio = |&(side, at, _): &(Side, f64, f64)| match side {
            Side::Below => low * 1.05 - 1e-4 - 1.5 * at,
            Side::Inside => 0.95 * (low + (high - low) * at),
            Side::Above => high * 1.05 + 1e-4 + 1.5 * at,
        };
        let log_ratios: Vec<f64> = tokens.iter().map(log_ratio).collect();
        let tokens = Tokens::drifted(&log_ratios, &tokens.iter().map(|token| token.2).collect::<Vec<_>>());
        let grpo = Grpo { clip };
        let (_, gradient) = evaluate(&grpo, &tokens.per_token());
        let value = |logprobs: &[f64]| loss_at(&grpo, &tokens, logprobs, Advantages::PerToken(&tokens.advantages));
        prop_assert!(all_close(&gradient, &finite_differences(&tokens.logprobs, value), 1e-8));
    }

    // Objective 5
    #[test]
    fn p05_on_policy_every_objective_is_reinforce_over_n(clip in clips(), mut tokens in f32_tokens(1)) {
        tokens.logprobs.clone_from(&tokens.behavior_logprobs);
        let n = tokens.len() as f64;
        for (objective, per_token) in [(&gspo_token(clip) as &dyn Objective, true), (&Grpo { clip }, true), (&gspo(clip), false)] {
            let advantage = tokens.advantages[0];
            let sequence = if per_token { tokens.per_token() } else { tokens.uniform(advantage) };
            let credit = if per_token { tokens.advantages.clone() } else { vec![advantage; tokens.len()] };
            let (evaluated, gradient) = evaluate(objective, &sequence);
            prop_assert!(close(evaluated.loss, -mean(&credit), 1e-14));
            prop_assert!(all_close(&gradient, &credit.iter().map(|a| -a / n).collect::<Vec<_>>(), 1e-15));
            prop_assert_eq!(evaluated.stats.n_clipped_low + evaluated.stats.n_clipped_high, 0);
            prop_assert_eq!(evaluated.stats.k3_sum, 0.0);
        }
    }

    // Objective 6
    #[test]
    fn p06_one_token_makes_every_objective_ppo((clip, _, tokens) in placed_tokens(), advantage in advantage()) {
        let tokens = Tokens { advantages: vec![advantage], ..tokens.pick(&[0]) };
        let log_ratio = tokens.log_ratios()[0];
        prop_assume!((log_ratio - clip.high().ln_1p()).abs() > 1e-12 && (log_ratio - (-clip.low()).ln_1p()).abs() > 1e-12);
        let ratio = log_ratio.exp();
        let clipped = ratio.clamp(1.0 - clip.low(), 1.0 + clip.high());
        let value = (ratio * advantage).min(clipped * advantage);
        let gradient = if ratio * advantage <= clipped * advantage { -ratio * advantage } else { 0.0 };
        for objective in objectives(clip) {
            let (evaluated, actual) = evaluate(objective.as_ref(), &tokens.per_token());
            prop_assert!(close(evaluated.loss, -value, 1e-14), "{objective:?}");
            prop_assert!(close(actual[0], gradient, 1e-14), "{objective:?}");
        }
    }

    // Objective 10
    #[test]
    fn p10_a_token_without_advantage_has_no_gradient_but_counts(
        (clip, tokens) in clips().prop_flat_map(|clip| (Just(clip), tokens_at(clip, Side::Inside))),
        silent in any::<prop::sample::Index>(),
    ) {
        let mut tokens = tokens;
        let silent = silent.index(tokens.len());
        tokens.advantages[silent] = 0.0;
        let (evaluated, gradient) = evaluate(&gspo_token(clip), &tokens.per_token());
        let (n, ratio) = (tokens.len() as f64, tokens.log_ratio().exp());
        prop_assert_eq!(gradient[silent], 0.0);
        prop_assert_eq!(evaluated.stats.n_tokens, tokens.len());
        let expected: Vec<f64> = tokens.advantages.iter().map(|a| -ratio * a / n).collect();
        prop_assert!(all_close(&gradient, &expected, 1e-13));
        prop_assert_eq!(evaluate(&Grpo { clip }, &tokens.per_token()).1[silent], 0.0);
    }

    // Objective 12
    #[test]
    fn p12_scaling_advantages_scales_the_loss((clip, _, tokens) in placed_tokens(), scale in 0.0..8.0) {
        let mut scaled = tokens.clone();
        scaled.advantages.iter_mut().for_each(|a| *a *= scale);
        for objective in [&gspo_token(clip) as &dyn Objective, &Grpo { clip }] {
            let (loss, gradient) = evaluate(objective, &tokens.per_token());
            let (scaled_loss, scaled_gradient) = evaluate(objective, &scaled.per_token());
            prop_assert!(close(scaled_loss.loss, scale * loss.loss, 1e-13));
            prop_assert!(all_close(&scaled_gradient, &gradient.iter().map(|c| scale * c).collect::<Vec<_>>(), 1e-13));
        }
    }

    // Objective 26
    #[test]
    fn p26_an_advantage_in_range_always_has_a_gradient(
        (clip, tokens) in clips().prop_flat_map(|clip| (Just(clip), tokens_at(clip, Side::Inside))),
    ) {
        let (_, gradient) = evaluate(&gspo_token(clip), &tokens.per_token());
        for (coefficient, advantage) in gradient.iter().zip(&tokens.advantages) {
            // Minimising the loss makes a token with a positive advantage more probable.
            prop_assert_eq!(coefficient.signum(), -advantage.signum());
        }
    }

    #[test]
    fn one_advantage_is_the_same_advantage_on_every_token(
        (clip, _, mut tokens) in placed_tokens(),
        advantage in advantage(),
    ) {
        tokens.advantages.fill(advantage);
        for objective in objectives(clip) {
            let (uniform, uniform_gradient) = evaluate(objective.as_ref(), &tokens.uniform(advantage));
            let (per_token, gradient) = evaluate(objective.as_ref(), &tokens.per_token());
            prop_assert!(close(uniform.loss, per_token.loss, 1e-14), "{objective:?}");
            prop_assert!(all_close(&uniform_gradient, &gradient, 1e-15), "{objective:?}");
            prop_assert_eq!(uniform.stats, per_token.stats, "{:?}", objective);
        }
    }

    #[test]
    fn gspo_refuses_advantages_that_differ((clip, _, tokens) in placed_tokens()) {
        let odd = tokens.advantages.iter().position(|a| *a != tokens.advantages[0]);
        let refused = gspo(clip).evaluate(&tokens.per_token(), &mut vec![0.0; tokens.len()]);
        match odd {
            Some(token) => prop_assert_eq!(refused, Err(ObjectiveError::NonUniformAdvantages { token })),
            None => prop_assert!(refused.is_ok()),
        }
    }
}

#[test]
fn length_weights_scale_the_mean_by_n_and_its_root() {
    let tokens = Tokens::drifted(&[1e-4; 9], &[1.0; 9]);
    let clip = Clip::PAPER_GSPO;
    let (mean, mean_gradient) = evaluate(&gspo(clip), &tokens.uniform(1.0));
    for (length_weight, factor) in [(LengthWeight::Tokens, 9.0), (LengthWeight::SqrtTokens, 3.0)] {
        let (weighted, gradient) = evaluate(&Gspo { clip, length_weight }, &tokens.uniform(1.0));
        assert!(close(weighted.loss, factor * mean.loss, 1e-15));
        assert!(close(gradient[0], factor * mean_gradient[0], 1e-15));
    }
}
