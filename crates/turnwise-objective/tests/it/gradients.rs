//! The values and gradients of GSPO and GSPO-token: how they relate, and finite differences.

use proptest::prelude::*;
use turnwise_objective::{
    Clip, Denominator, Grpo, Gspo, GspoToken, LengthWeight, Objective, ObjectiveError, Sequence,
    SequenceLoss,
};
use turnwise_testkit::objectives::{
    check_equals_gspo, check_gradient, check_gradient_of, check_on_policy, check_one_token,
    check_scaling, check_signs, check_uniform_advantages, check_zero_advantage,
};

use crate::support::*;

/// Returns A_t·a_t: the advantage if its token has a gradient.
fn active(advantage: f64, side: ClipSide) -> f64 {
    match side {
        ClipSide::Above if advantage > 0.0 => 0.0,
        ClipSide::Below if advantage < 0.0 => 0.0,
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

/// GSPO-token's value with its derivative as the gradient: the ratio is not detached, so the advantages are averaged.
#[derive(Debug)]
struct Averaged {
    clip: Clip,
}

impl Objective for Averaged {
    fn name(&self) -> &'static str {
        "averaged"
    }

    fn denominator(&self) -> Denominator {
        Denominator::Sequences
    }

    fn evaluate(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError> {
        let evaluated = gspo_token(self.clip).evaluate(sequence, gradient)?;
        gradient.fill(mean(gradient));
        Ok(evaluated)
    }
}

proptest! {
    // Objective 1
    #[test]
    fn p01_uniform_advantages_make_gspo_and_gspo_token_one(
        (clip, _, mut tokens) in placed_tokens(),
        advantage in advantage(),
        weight in prop::sample::select(WEIGHTS.to_vec()),
    ) {
        let gspo = Gspo { clip, length_weight: weight };
        let gspo_token = GspoToken { clip, length_weight: weight };
        check_equals_gspo(&gspo_token, &gspo, &tokens, advantage)?;
        let (expected, _) = evaluate(&gspo, &tokens.uniform(advantage));
        tokens.advantages.fill(advantage);
        for sequence in [tokens.uniform(advantage), tokens.per_token()] {
            prop_assert_eq!(evaluate(&gspo_token, &sequence).0.stats, expected.stats);
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
        prop_assert_eq!(token.stats.gap == 0.0, side == ClipSide::Inside || positive == 0.0 || negative == 0.0);
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
        (clip, _, mut tokens) in placed_tokens(),
        advantage in advantage(),
        weight in prop::sample::select(WEIGHTS.to_vec()),
    ) {
        tokens.advantages.fill(advantage);
        check_gradient(&Gspo { clip, length_weight: weight }, &tokens)?;
    }

    // Objective 4
    #[test]
    fn p04_the_gradient_of_gspo_token_is_the_finite_difference_of_the_surrogate_with_s_frozen(
        (clip, _, tokens) in placed_tokens(),
        weight in prop::sample::select(WEIGHTS.to_vec()),
    ) {
        let gspo_token = GspoToken { clip, length_weight: weight };
        check_gradient_of(&gspo_token, &tokens, |frozen, logprobs| {
            -weight.of(frozen.len()) * surrogate(clip, frozen, logprobs)
        })?;
    }

    // Objective 4
    #[test]
    fn p04_the_gradient_of_gspo_token_is_not_the_finite_difference_of_its_value_unless_advantages_are_uniform(
        (clip, tokens) in clips().prop_flat_map(|clip| (Just(clip), tokens_at(clip, ClipSide::Inside))),
    ) {
        let is_uniform = tokens.advantages.iter().all(|&a| (a - tokens.advantages[0]).abs() < 1e-4);
        prop_assert_eq!(check_gradient(&gspo_token(clip), &tokens).is_ok(), is_uniform);
        // The derivative of the value is the impostor: the mean advantage on every token.
        check_gradient(&Averaged { clip }, &tokens)?;
    }

    // Objective 4
    #[test]
    fn p04_the_gradient_of_grpo_is_the_finite_difference_of_its_value(
        clip in clips(),
        tokens in prop::collection::vec((sides(), 0.0..1.0, advantage()), 1..30),
    ) {
        let (low, high) = ((-clip.low()).ln_1p(), clip.high().ln_1p());
        let log_ratio = |&(side, at, _): &(ClipSide, f64, f64)| match side {
            ClipSide::Below => low * 1.05 - 1e-4 - 1.5 * at,
            ClipSide::Inside => 0.95 * (low + (high - low) * at),
            ClipSide::Above => high * 1.05 + 1e-4 + 1.5 * at,
        };
        let log_ratios: Vec<f64> = tokens.iter().map(log_ratio).collect();
        let tokens = Tokens::drifted(&log_ratios, &tokens.iter().map(|token| token.2).collect::<Vec<_>>());
        check_gradient(&Grpo { clip }, &tokens)?;
    }

    // Objective 5
    #[test]
    fn p05_on_policy_every_objective_is_reinforce_over_n(clip in clips(), mut tokens in f32_tokens(1)) {
        tokens.logprobs.clone_from(&tokens.behavior_logprobs);
        for objective in objectives(clip) {
            check_on_policy(&*objective, &tokens)?;
            let (evaluated, _) = evaluate(&*objective, &tokens.per_token());
            prop_assert!(close(evaluated.loss, -tokens.mean_advantage(), 1e-14));
            prop_assert_eq!(evaluated.stats.k3_sum, 0.0);
        }
    }

    // Objective 6
    #[test]
    fn p06_one_token_makes_every_objective_ppo((clip, _, tokens) in placed_tokens(), advantage in advantage()) {
        let log_ratio = tokens.log_ratios()[0];
        let bounds = [clip.high().ln_1p(), (-clip.low()).ln_1p()];
        prop_assume!(bounds.iter().all(|bound| (log_ratio - bound).abs() > 1e-12));
        for objective in objectives(clip) {
            check_one_token(&*objective, clip, log_ratio, advantage)?;
        }
    }

    // Objective 10
    #[test]
    fn p10_a_token_without_advantage_has_no_gradient_but_counts(
        (clip, tokens) in clips().prop_flat_map(|clip| (Just(clip), tokens_at(clip, ClipSide::Inside))),
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
        for objective in every_policy_objective(clip) {
            check_zero_advantage(&*objective, &tokens, silent)?;
        }
    }

    // Objective 12
    #[test]
    fn p12_scaling_advantages_scales_the_loss((clip, _, tokens) in placed_tokens(), scale in 0.0..8.0) {
        for objective in every_policy_objective(clip) {
            check_scaling(&*objective, &tokens, scale)?;
        }
    }

    // Objective 26
    #[test]
    fn p26_an_advantage_in_range_always_has_a_gradient(
        (clip, tokens) in clips().prop_flat_map(|clip| (Just(clip), tokens_at(clip, ClipSide::Inside))),
    ) {
        check_signs(&gspo_token(clip), &tokens)?;
    }

    #[test]
    fn one_advantage_is_the_same_advantage_on_every_token(
        (clip, _, mut tokens) in placed_tokens(),
        advantage in advantage(),
    ) {
        for objective in every_objective(clip) {
            check_uniform_advantages(&*objective, &tokens, advantage)?;
            tokens.advantages.fill(advantage);
            let (uniform, _) = evaluate(&*objective, &tokens.uniform(advantage));
            let (per_token, _) = evaluate(&*objective, &tokens.per_token());
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
