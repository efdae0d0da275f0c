//! Metrics of a step.

use proptest::prelude::*;
use turnwise_objective::{Clip, Dapo, DrGrpo, Grpo, Metrics, Objective, Sequence, evaluate_step};
use turnwise_testkit::objectives::check_clip_counts;

use crate::support::*;

/// Generates a clip range and a step around it.
fn placed_steps() -> impl Strategy<Value = (Clip, Vec<Tokens>)> {
    clips().prop_flat_map(|clip| {
        let tokens = sides().prop_flat_map(move |side| tokens_at(clip, side));
        (Just(clip), prop::collection::vec(tokens, 1..10))
    })
}

fn metrics_of(objective: &dyn Objective, step: &[Sequence<'_>]) -> Metrics {
    evaluate_step(objective, step).unwrap().metrics
}

proptest! {
    // Objective 24
    #[test]
    fn p24_clip_fractions_count_the_gradients_that_clipping_removed((clip, step) in placed_steps()) {
        let sequences: Vec<Sequence> = step.iter().map(Tokens::per_token).collect();
        for objective in [&gspo_token(clip) as &dyn Objective, &Grpo { clip }, &Dapo { clip }, &DrGrpo { clip, max_tokens: 9 }] {
            let evaluated = evaluate_step(objective, &sequences).unwrap();
            let removed = |tokens: &Tokens, gradient: &[f64]| {
                gradient.iter().zip(&tokens.advantages).filter(|(c, a)| **c == 0.0 && **a != 0.0).count()
            };
            let counts: Vec<usize> = step.iter().zip(&evaluated.gradients).map(|(t, g)| removed(t, g)).collect();
            let (by_token, by_sequence) = (evaluated.metrics.clip_fraction_by_token(), evaluated.metrics.clip_fraction_by_sequence());
            for fraction in [by_token, by_sequence] {
                prop_assert!(0.0 <= fraction.low && 0.0 <= fraction.high && fraction.total() <= 1.0 + 1e-15);
                prop_assert_eq!(fraction.low + fraction.high, fraction.total());
            }
            let n_tokens: usize = step.iter().map(Tokens::len).sum();
            prop_assert!(close(by_token.total(), counts.iter().sum::<usize>() as f64 / n_tokens as f64, 1e-14));
            let shares: Vec<f64> = counts.iter().zip(&step).map(|(&count, t)| count as f64 / t.len() as f64).collect();
            prop_assert!(close(by_sequence.total(), mean(&shares), 1e-14));
        }
    }

    // Objective 24
    #[test]
    fn p24_both_forms_report_the_same_with_uniform_advantages((clip, step) in placed_steps(), advantage in nonzero_advantage()) {
        let sequences: Vec<Sequence> = step.iter().map(|tokens| tokens.uniform(advantage)).collect();
        prop_assert_eq!(metrics_of(&gspo(clip), &sequences), metrics_of(&gspo_token(clip), &sequences));
    }

    // Objective 24
    #[test]
    fn p24_the_two_bounds_are_told_apart((clip, tokens) in clips().prop_flat_map(|clip| (Just(clip), tokens_at(clip, ClipSide::Above)))) {
        let fraction = metrics_of(&gspo(clip), &[tokens.uniform(1.0)]).clip_fraction_by_token();
        prop_assert_eq!((fraction.low, fraction.high), (0.0, 1.0));
        let fraction = metrics_of(&gspo(clip), &[tokens.uniform(-1.0)]).clip_fraction_by_token();
        prop_assert_eq!((fraction.low, fraction.high), (0.0, 0.0));
    }

    // Objective 24
    #[test]
    fn p24_every_objective_counts_the_gradients_that_its_clipping_removed((clip, step) in placed_steps()) {
        for objective in every_policy_objective(clip) {
            for tokens in &step {
                check_clip_counts(&*objective, tokens)?;
                let stats = evaluate(&*objective, &tokens.per_token()).0.stats;
                prop_assert!(stats.n_truncated <= stats.n_with_advantage);
            }
            let sequences: Vec<Sequence> = step.iter().map(Tokens::per_token).collect();
            let metrics = metrics_of(&Fitted(&*objective), &sequences);
            for fraction in [metrics.clip_fraction_by_token(), metrics.clip_fraction_by_sequence()] {
                prop_assert!(fraction.low >= 0.0 && fraction.high >= 0.0 && fraction.dual >= 0.0);
                prop_assert!(fraction.total() <= 1.0 + 1e-15);
                prop_assert!(close(fraction.total(), fraction.low + fraction.high + fraction.dual, 1e-15));
            }
        }
    }

    #[test]
    fn moments_weights_and_k3_are_their_definitions((clip, step) in placed_steps()) {
        let sequences: Vec<Sequence> = step.iter().map(Tokens::per_token).collect();
        let metrics = metrics_of(&gspo_token(clip), &sequences);
        let log_ratios: Vec<f64> = step.iter().map(Tokens::log_ratio).collect();
        let centre = mean(&log_ratios);
        let std = mean(&log_ratios.iter().map(|l| (l - centre).powi(2)).collect::<Vec<_>>()).sqrt();
        prop_assert!(close(metrics.log_ratio_mean(), centre, 1e-13));
        prop_assert!((metrics.log_ratio_std() - std).abs() <= 1e-12);
        let weights: Vec<f64> = log_ratios.iter().map(|l| l.exp()).collect();
        let size = weights.iter().sum::<f64>().powi(2) / weights.iter().map(|w| w * w).sum::<f64>();
        prop_assert!(close(metrics.effective_sample_size(), size, 1e-12));
        prop_assert!(size <= step.len() as f64 + 1e-9);
        let k3: Vec<f64> = step.iter().flat_map(Tokens::log_ratios).map(|d| d.exp_m1() - d).collect();
        prop_assert!(close(metrics.k3_mean(), mean(&k3), 1e-14));
        prop_assert!(metrics.k3_mean() >= 0.0);
        prop_assert!(close(metrics.tokens_per_sequence(), k3.len() as f64 / step.len() as f64, 1e-15));
        let n_live = step.iter().flat_map(|tokens| &tokens.advantages).filter(|a| **a != 0.0).count();
        prop_assert!(close(metrics.advantage_fraction(), n_live as f64 / k3.len() as f64, 1e-15));
        if let Some(window) = metrics.window_over_std(clip) {
            prop_assert!(close(window * metrics.log_ratio_std() * 2.0, clip.high().ln_1p() - (-clip.low()).ln_1p(), 1e-13));
        }
    }

    #[test]
    fn the_gap_is_live_only_out_of_range_with_both_signs((clip, side, tokens) in placed_tokens()) {
        let metrics = metrics_of(&gspo_token(clip), &[tokens.per_token()]);
        let signs = (tokens.advantages.iter().any(|a| *a > 0.0), tokens.advantages.iter().any(|a| *a < 0.0));
        let live = side != ClipSide::Inside && signs == (true, true);
        prop_assert_eq!(metrics.gap_live_fraction(), if live { 1.0 } else { 0.0 });
        prop_assert_eq!(metrics.gap_mean() > 0.0, live);
    }
}
