//! Which gradients clipping removes.

use proptest::prelude::*;
use turnwise_objective::{Clip, Grpo, Objective, ObjectiveError};
use turnwise_testkit::objectives::check_clip_sides;

use crate::support::*;

proptest! {
    // Objective 7
    #[test]
    fn p07_clip_sides_only_a_gain_above_and_a_loss_below_lose_their_gradient(
        (clip, side, tokens) in placed_tokens(),
        advantage in nonzero_advantage(),
    ) {
        let log_ratios = vec![tokens.log_ratio(); tokens.len()];
        let flat = Tokens { advantages: vec![advantage; tokens.len()], ..tokens.clone() };
        check_clip_sides(&gspo(clip), clip, &flat, &log_ratios)?;
        let (evaluated, gradient) = evaluate(&gspo(clip), &tokens.uniform(advantage));
        let (n, ratio) = (tokens.len(), tokens.log_ratio().exp());
        let clipped_high = side == ClipSide::Above && advantage > 0.0;
        let clipped_low = side == ClipSide::Below && advantage < 0.0;
        let coefficient = if clipped_high || clipped_low { 0.0 } else { -ratio * advantage / n as f64 };
        let bounded = if clipped_high { 1.0 + clip.high() } else if clipped_low { 1.0 - clip.low() } else { ratio };
        prop_assert!(gradient.iter().all(|&c| close(c, coefficient, 1e-13)));
        prop_assert!(close(evaluated.loss, -bounded * advantage, 1e-13));
        prop_assert_eq!(evaluated.stats.n_clipped_high, if clipped_high { n } else { 0 });
        prop_assert_eq!(evaluated.stats.n_clipped_low, if clipped_low { n } else { 0 });
    }

    // Objective 8
    #[test]
    fn p08_a_ratio_at_the_upper_bound_is_unclipped_and_one_ulp_beyond_is_clipped(
        log_ratio in prop_oneof![1e-6..1e-3, 1e-3..0.69],
        length in prop::sample::select(vec![1, 2, 4, 8, 16]),
    ) {
        // Between 1 and 2 these differences are exact, so 1 + high is the ratio itself, or its
        // neighbour.
        let ratio: f64 = f64::exp(log_ratio);
        let clipped = |bound: f64| {
            let clip = Clip::new(0.5, bound - 1.0).unwrap();
            assert_eq!(1.0 + clip.high(), bound);
            let tokens = Tokens { logprobs: vec![log_ratio; length], behavior_logprobs: vec![0.0; length], advantages: vec![1.0; length] };
            objectives(clip).map(|objective| evaluate(objective.as_ref(), &tokens.per_token()).1.iter().all(|c| *c == 0.0))
        };
        prop_assert_eq!(clipped(ratio), [false; 3]);
        prop_assert_eq!(clipped(ratio.next_up()), [false; 3]);
        prop_assert_eq!(clipped(ratio.next_down()), [true; 3]);
    }

    // Objective 8
    #[test]
    fn p08_a_ratio_at_the_lower_bound_is_unclipped_and_one_ulp_beyond_is_clipped(
        log_ratio in prop_oneof![-1e-3..-1e-6, -0.69..-1e-3],
        length in prop::sample::select(vec![1, 2, 4, 8, 16]),
    ) {
        let ratio: f64 = f64::exp(log_ratio);
        let clipped = |bound: f64| {
            let clip = Clip::new(1.0 - bound, 0.5).unwrap();
            assert_eq!(1.0 - clip.low(), bound);
            let tokens = Tokens { logprobs: vec![log_ratio; length], behavior_logprobs: vec![0.0; length], advantages: vec![-1.0; length] };
            objectives(clip).map(|objective| evaluate(objective.as_ref(), &tokens.per_token()).1.iter().all(|c| *c == 0.0))
        };
        prop_assert_eq!(clipped(ratio), [false; 3]);
        prop_assert_eq!(clipped(ratio.next_down()), [false; 3]);
        prop_assert_eq!(clipped(ratio.next_up()), [true; 3]);
    }

    // Objective 8
    #[test]
    fn p08_the_decision_is_that_of_the_ratio_in_f64(
        clip in clips(),
        log_ratio in prop_oneof![-2.0..2.0, -1e-3..1e-3],
        ulps in -8i64..8,
        at_bound in prop::option::of(any::<bool>()),
        advantage in prop::sample::select(vec![-1.0, 1.0]),
    ) {
        let near = |bound: f64| f64::from_bits(bound.to_bits().wrapping_add_signed(ulps));
        let log_ratio = match at_bound {
            None => log_ratio,
            Some(true) => near(clip.high().ln_1p()),
            Some(false) => near((-clip.low()).ln_1p()),
        };
        let tokens = Tokens { logprobs: vec![log_ratio], behavior_logprobs: vec![0.0], advantages: vec![advantage] };
        let ratio = log_ratio.exp();
        let clipped = if advantage > 0.0 { ratio > 1.0 + clip.high() } else { ratio < 1.0 - clip.low() };
        for objective in objectives(clip) {
            prop_assert_eq!(evaluate(objective.as_ref(), &tokens.per_token()).1[0] == 0.0, clipped, "{:?}", objective);
        }
    }

    // Objective 9
    #[test]
    fn p09_out_of_range_only_the_sign_that_leads_back_moves((clip, side, tokens) in placed_tokens()) {
        let log_ratios = vec![tokens.log_ratio(); tokens.len()];
        check_clip_sides(&gspo_token(clip), clip, &tokens, &log_ratios)?;
        check_clip_sides(&Grpo { clip }, clip, &tokens, &tokens.log_ratios())?;
        let (evaluated, _) = evaluate(&gspo_token(clip), &tokens.per_token());
        let count = |keep: fn(f64) -> bool| tokens.advantages.iter().filter(|a| keep(**a)).count();
        let high = if side == ClipSide::Above { count(|a| a > 0.0) } else { 0 };
        let low = if side == ClipSide::Below { count(|a| a < 0.0) } else { 0 };
        prop_assert_eq!((evaluated.stats.n_clipped_low, evaluated.stats.n_clipped_high), (low, high));
        prop_assert_eq!(evaluated.stats.n_with_advantage, count(|a| a != 0.0));
    }
}

#[test]
fn a_range_of_no_width_leaves_the_ratio_one_alone() {
    let clip = Clip::new(0.0, 0.0).unwrap();
    for advantage in [1.0, -1.0] {
        let tokens = Tokens::drifted(&[0.0, 0.0], &[advantage; 2]);
        for objective in objectives(clip) {
            let (_, gradient) = evaluate(objective.as_ref(), &tokens.per_token());
            assert_eq!(gradient, [-advantage / 2.0; 2]);
        }
    }
}

#[test]
fn clip_bounds_outside_their_range_are_refused() {
    let infinity = f64::INFINITY;
    for (low, high) in
        [(-0.1, 0.2), (1.0, 0.2), (0.2, -0.1), (0.2, infinity), (f64::NAN, 0.2), (0.2, f64::NAN)]
    {
        let refused = Clip::new(low, high);
        assert!(matches!(refused, Err(ObjectiveError::InvalidClip { .. })), "{low} {high}");
    }
    assert!(Clip::new(0.0, 0.0).is_ok());
}

// Objective 19
#[test]
fn p19_tokens_that_cancel_in_the_mean_are_clipped_one_by_one_in_grpo_only() {
    let clip = Clip::PAPER_GRPO;
    let tokens = Tokens::drifted(&[1.0, -1.0, 1.0, -1.0], &[1.0; 4]);
    let clipped =
        |objective: &dyn Objective| evaluate(objective, &tokens.per_token()).0.stats.n_clipped_high;
    assert_eq!(
        (clipped(&gspo(clip)), clipped(&gspo_token(clip)), clipped(&Grpo { clip })),
        (0, 0, 2)
    );
}
