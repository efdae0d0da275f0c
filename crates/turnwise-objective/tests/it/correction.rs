//! Importance weights for tokens of another policy than the trainer's, and over-long shaping.

use proptest::prelude::*;
use turnwise_objective::{
    Advantages, CorrectionLevel, CorrectionRule, Grpo, ObjectiveError, Sequence, SoftOverlong,
    WithOffPolicyMask, correction_weights, off_policy_mask, weighted,
};

use crate::support::*;

const OPEN: CorrectionRule = CorrectionRule::Mask { low: 0.0, high: 1e300 };

fn levels(n: usize) -> [CorrectionLevel<'static>; 4] {
    let segments: &'static [usize] = Box::leak(Box::new([n / 3, n - n / 3]));
    [
        CorrectionLevel::Token,
        CorrectionLevel::Sequence,
        CorrectionLevel::GeometricMean,
        CorrectionLevel::Segments(segments),
    ]
}

proptest! {
    // Objective 22
    #[test]
    fn p22_equal_log_probabilities_weigh_exactly_one_and_change_no_bit((clip, _, tokens) in placed_tokens()) {
        for level in levels(tokens.len()) {
            for rule in [CorrectionRule::Truncate { max: 1.0 }, CorrectionRule::Mask { low: 1.0, high: 1.0 }] {
                let weights = correction_weights(&tokens.logprobs, &tokens.logprobs, level, rule).unwrap();
                prop_assert_eq!(&weights, &vec![1.0; tokens.len()]);
                let corrected = Tokens {
                    advantages: weighted(Advantages::PerToken(&tokens.advantages), &weights).unwrap(),
                    ..tokens.clone()
                };
                prop_assert_eq!(evaluate(&gspo_token(clip), &corrected.per_token()), evaluate(&gspo_token(clip), &tokens.per_token()));
            }
        }
    }

    // Objective 22
    #[test]
    fn p22_bounds_keep_a_weight_that_is_exactly_at_them(log_ratio in -2.0..2.0) {
        let ratio: f64 = f64::exp(log_ratio);
        let weight = |rule| correction_weights(&[log_ratio], &[0.0], CorrectionLevel::Token, rule).unwrap()[0];
        prop_assert_eq!(weight(CorrectionRule::Mask { low: ratio, high: ratio }), ratio);
        prop_assert_eq!(weight(CorrectionRule::Mask { low: ratio.next_up(), high: 1e9 }), 0.0);
        prop_assert_eq!(weight(CorrectionRule::Mask { low: 0.0, high: ratio.next_down() }), 0.0);
        prop_assert_eq!(weight(CorrectionRule::Truncate { max: ratio }), ratio);
        prop_assert_eq!(weight(CorrectionRule::Truncate { max: ratio.next_down() }), ratio.next_down());
    }

    // Objective 22
    #[test]
    fn p22_a_masked_token_loses_its_gradient_and_still_counts_in_n_and_s(
        (clip, _, tokens) in placed_tokens(),
        dropped in prop::collection::vec(any::<bool>(), 40),
    ) {
        let weights: Vec<f64> = dropped[..tokens.len()].iter().map(|drop| if *drop { 0.0 } else { 1.0 }).collect();
        let masked = Tokens {
            advantages: weighted(Advantages::PerToken(&tokens.advantages), &weights).unwrap(),
            ..tokens.clone()
        };
        for objective in [&gspo_token(clip) as &dyn turnwise_objective::Objective, &Grpo { clip }] {
            let (whole, gradient) = evaluate(objective, &tokens.per_token());
            let (evaluated, masked_gradient) = evaluate(objective, &masked.per_token());
            prop_assert_eq!(evaluated.stats.n_tokens, whole.stats.n_tokens);
            prop_assert_eq!(evaluated.stats.log_ratio, whole.stats.log_ratio);
            for (t, weight) in weights.iter().enumerate() {
                prop_assert_eq!(masked_gradient[t], weight * gradient[t]);
            }
        }
    }

    // Objective 22: the weight is a constant factor of each token's gradient, so nothing flows through it.
    #[test]
    fn p22_weights_are_detached((clip, _, tokens) in placed_tokens(), drift in -0.5..0.5) {
        let recorded: Vec<f64> = tokens.logprobs.iter().enumerate().map(|(t, l)| l - drift * (t % 3) as f64).collect();
        let weights = correction_weights(&tokens.logprobs, &recorded, CorrectionLevel::Token, CorrectionRule::Truncate { max: 2.0 }).unwrap();
        let corrected = Tokens { advantages: weighted(Advantages::PerToken(&tokens.advantages), &weights).unwrap(), ..tokens.clone() };
        let (_, plain) = evaluate(&Grpo { clip }, &tokens.per_token());
        let (_, gradient) = evaluate(&Grpo { clip }, &corrected.per_token());
        let expected: Vec<f64> = plain.iter().zip(&weights).map(|(c, w)| c * w).collect();
        prop_assert!(all_close(&gradient, &expected, 1e-14));
    }

    // Objective 22
    #[test]
    fn p22_levels_are_their_definitions(log_ratios in prop::collection::vec(-0.5..0.5, 2..20)) {
        let n = log_ratios.len();
        let zeros = vec![0.0; n];
        let of = |level| correction_weights(&log_ratios, &zeros, level, OPEN).unwrap();
        let total: f64 = log_ratios.iter().sum();
        prop_assert!(all_close(&of(CorrectionLevel::Token), &log_ratios.iter().map(|l| l.exp()).collect::<Vec<_>>(), 1e-14));
        prop_assert!(all_close(&of(CorrectionLevel::Sequence), &vec![total.exp(); n], 1e-13));
        prop_assert!(all_close(&of(CorrectionLevel::GeometricMean), &vec![(total / n as f64).exp(); n], 1e-14));
        let segments = of(CorrectionLevel::Segments(&[1, 0, n - 1]));
        prop_assert!(close(segments[0], log_ratios[0].exp(), 1e-14));
        prop_assert!(all_close(&segments[1..], &vec![mean(&log_ratios[1..]).exp(); n - 1], 1e-14));
    }

    // Objective 22
    #[test]
    fn p22_an_objective_behind_the_off_policy_mask_has_the_gradient_of_the_masked_advantages(
        (clip, _, tokens) in placed_tokens(), max_kl in 0.0..0.3,
    ) {
        let weights = off_policy_mask(&tokens.per_token(), max_kl).unwrap();
        let advantages = weighted(Advantages::PerToken(&tokens.advantages), &weights).unwrap();
        let masked = Tokens { advantages, ..tokens.clone() };
        let objective = WithOffPolicyMask::new(gspo_token(clip), max_kl).unwrap();
        prop_assert_eq!(evaluate(&objective, &tokens.per_token()), evaluate(&gspo_token(clip), &masked.per_token()));
        let never = WithOffPolicyMask::new(gspo_token(clip), 1e9).unwrap();
        prop_assert_eq!(evaluate(&never, &tokens.per_token()), evaluate(&gspo_token(clip), &tokens.per_token()));
    }

    // Objective 22
    #[test]
    fn p22_off_policy_sequences_lose_their_negative_tokens_and_nothing_else((_, _, tokens) in placed_tokens(), max_kl in 0.01..0.3) {
        let weights = off_policy_mask(&tokens.per_token(), max_kl).unwrap();
        let is_left_behind = -tokens.log_ratio() > max_kl;
        prop_assume!((tokens.log_ratio() + max_kl).abs() > 1e-9);
        for (weight, advantage) in weights.iter().zip(&tokens.advantages) {
            prop_assert_eq!(*weight == 0.0, is_left_behind && *advantage < 0.0);
            prop_assert!(*weight == 0.0 || *weight == 1.0);
        }
    }

    #[test]
    fn over_long_punishment_falls_from_zero_to_minus_one(max_tokens in 1usize..500, buffer_tokens in 0usize..600) {
        let shaping = SoftOverlong { max_tokens, buffer_tokens };
        prop_assert_eq!(shaping.penalty(0), 0.0);
        prop_assert_eq!(shaping.penalty(max_tokens + 1), -1.0);
        let penalties: Vec<f64> = (0..max_tokens + 2).map(|n| shaping.penalty(n)).collect();
        prop_assert!(penalties.windows(2).all(|pair| pair[1] <= pair[0]));
        if buffer_tokens > 0 && buffer_tokens < max_tokens {
            prop_assert_eq!(shaping.penalty(max_tokens - buffer_tokens), 0.0);
            prop_assert_eq!(shaping.penalty(max_tokens), -1.0);
        }
    }
}

// Objective 22: an overflow of the product is capped, not zeroed.
#[test]
fn p22_a_product_that_overflows_meets_the_cap() {
    let (trainer, recorded) = (vec![-1.0; 1000], vec![-3.0; 1000]);
    let of = |rule| {
        correction_weights(&trainer, &recorded, CorrectionLevel::Sequence, rule).unwrap()[999]
    };
    assert_eq!(of(CorrectionRule::Truncate { max: 2.0 }), 2.0);
    assert_eq!(of(CorrectionRule::Mask { low: 0.5, high: 2.0 }), 0.0);
    let back =
        |rule| correction_weights(&recorded, &trainer, CorrectionLevel::Sequence, rule).unwrap()[0];
    assert_eq!(back(CorrectionRule::Truncate { max: 2.0 }), 0.0);
}

// Objective 22
#[test]
fn p22_an_impossible_token_weighs_zero_and_what_is_not_finite_is_an_error() {
    let truncate = CorrectionRule::Truncate { max: 2.0 };
    let of = |trainer: &[f64], recorded: &[f64], level| {
        correction_weights(trainer, recorded, level, truncate)
    };
    let impossible = [f64::NEG_INFINITY, -1.0];
    assert_eq!(of(&impossible, &[-1.0; 2], CorrectionLevel::Token).unwrap(), [0.0, 1.0]);
    assert_eq!(of(&impossible, &[-1.0; 2], CorrectionLevel::Sequence).unwrap(), [0.0, 0.0]);
    for bad in [f64::NAN, f64::INFINITY] {
        let refused = of(&[-1.0, bad], &[-1.0; 2], CorrectionLevel::Token).unwrap_err();
        assert!(matches!(refused, ObjectiveError::NonFinite { quantity: "logprob", token: 1, .. }));
        let refused = of(&[-1.0; 2], &[bad, -1.0], CorrectionLevel::Token).unwrap_err();
        let named = matches!(
            refused,
            ObjectiveError::NonFinite { quantity: "behavior logprob", token: 0, .. }
        );
        assert!(named);
        assert!(weighted(Advantages::Uniform(1.0), &[bad]).is_err());
    }
    assert!(of(&[-1.0; 2], &[-1.0; 3], CorrectionLevel::Token).is_err());
    assert!(of(&[-1.0; 2], &[-1.0; 2], CorrectionLevel::Segments(&[1])).is_err());
    for rule in [
        CorrectionRule::Truncate { max: 0.0 },
        CorrectionRule::Truncate { max: f64::INFINITY },
        CorrectionRule::Mask { low: 2.0, high: 1.0 },
        CorrectionRule::Mask { low: -1.0, high: 1.0 },
        CorrectionRule::Mask { low: f64::NAN, high: 1.0 },
    ] {
        let refused = correction_weights(&[-1.0], &[-1.0], CorrectionLevel::Token, rule);
        assert!(matches!(refused, Err(ObjectiveError::InvalidSetting { .. })), "{rule:?}");
    }
    let sequence = Sequence::new(&[-1.0], &[-1.0], Advantages::Uniform(-1.0)).unwrap();
    assert!(off_policy_mask(&sequence, -0.1).is_err());
}
