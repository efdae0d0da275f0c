//! A million tokens, and numbers that were widened from narrower types.

use proptest::prelude::*;
use turnwise_objective::{Advantages, Clip, Grpo, Objective, Sequence};
use turnwise_testkit::objectives::check_length;

use crate::support::*;

const MILLION: usize = 1_000_000;

/// Returns pseudo-random integers in units of 2⁻⁴⁰, so that sums can be checked exactly.
fn steps(n: usize, seed: u64) -> impl Iterator<Item = i64> {
    let mut state = seed | 1;
    (0..n).map(move |_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33).cast_signed() - (1 << 30)) << 7
    })
}

// Objective 17
#[test]
fn p17_a_million_tokens_sum_to_the_rounded_exact_sum() {
    let unit = 2f64.powi(-40);
    let log_ratios: Vec<i64> = steps(MILLION, 7).collect();
    let exact: i128 = log_ratios.iter().map(|&step| i128::from(step)).sum();
    let behavior_logprobs = vec![0.0; MILLION];
    let logprobs: Vec<f64> = log_ratios.iter().map(|&step| step as f64 * unit).collect();
    let expected = exact as f64 * unit / MILLION as f64;
    // Bounds just above and just below the mean decide as the exact sum does.
    for (hair, clipped) in [(1e-15, false), (-1e-15, true)] {
        let (clip, advantage) = if expected > 0.0 {
            (Clip::new(0.5, (expected + hair).exp_m1()).unwrap(), 1.0)
        } else {
            (Clip::new(-(expected - hair).exp_m1(), 0.5).unwrap(), -1.0)
        };
        let sequence =
            Sequence::new(&logprobs, &behavior_logprobs, Advantages::Uniform(advantage)).unwrap();
        let (evaluated, gradient) = evaluate(&gspo(clip), &sequence);
        assert_eq!(evaluated.stats.log_ratio, expected);
        assert_eq!(gradient.iter().all(|c| *c == 0.0), clipped);
    }
}

// Objective 17
#[test]
fn p17_a_constant_drift_gives_the_same_ratio_at_every_length() {
    for drift in [0.125, 3e-4, -1e-3] {
        for length in [1, 2, 3, 7, 8, 9, 1000, 65_537, MILLION] {
            let (logprobs, behavior_logprobs) = (vec![drift; length], vec![0.0; length]);
            let sequence =
                Sequence::new(&logprobs, &behavior_logprobs, Advantages::Uniform(1.0)).unwrap();
            let (evaluated, _) = evaluate(&gspo(Clip::new(0.5, 0.5).unwrap()), &sequence);
            assert!(
                (evaluated.stats.log_ratio / drift - 1.0).abs() <= f64::EPSILON,
                "{drift} {length}"
            );
            assert!(close(evaluated.loss, -f64::exp(drift), 4e-16), "{drift} {length}");
        }
    }
}

// Objective 17
#[test]
fn p17_a_constant_drift_gives_every_objective_the_same_loss_per_unit_of_weight_at_every_length() {
    for objective in every_objective(Clip::PAPER_GRPO) {
        for (drift, advantage) in [(0.125, 1.0), (0.125, -1.0), (-0.5, 1.0), (-0.5, -1.0)] {
            for length in [2, 9, 1001, MILLION] {
                check_length(&*objective, drift, advantage, length, 2e-15).unwrap();
            }
        }
    }
}

// Objective 17
#[test]
fn p17_a_large_token_does_not_swallow_the_small_ones() {
    let mut log_ratios = vec![1e-3; 1001];
    log_ratios[0] = 1e16;
    log_ratios[1000] = -1e16;
    let tokens = Tokens {
        logprobs: log_ratios,
        behavior_logprobs: vec![0.0; 1001],
        advantages: vec![1.0; 1001],
    };
    let (evaluated, _) = evaluate(&gspo_token(Clip::PAPER_GRPO), &tokens.per_token());
    assert!(close(evaluated.stats.log_ratio, 999.0 * 1e-3 / 1001.0, 1e-15));
}

// Objective 17
#[test]
fn p17_the_advantages_of_a_million_tokens_are_summed_as_exactly() {
    let credit: Vec<f64> = steps(MILLION, 11).map(|step| step as f64 * 2f64.powi(-30)).collect();
    let exact: i128 = steps(MILLION, 11).map(i128::from).sum();
    let logprobs = vec![-1.0; MILLION];
    let sequence = Sequence::new(&logprobs, &logprobs, Advantages::PerToken(&credit)).unwrap();
    let expected = -(exact as f64) * 2f64.powi(-30) / MILLION as f64;
    for objective in
        [&gspo_token(Clip::PAPER_GSPO) as &dyn Objective, &Grpo { clip: Clip::PAPER_GSPO }]
    {
        let (evaluated, _) = evaluate(objective, &sequence);
        assert!(
            (evaluated.loss - expected).abs() < 1e-13,
            "{objective:?}: {} {expected}",
            evaluated.loss
        );
    }
}

/// Returns x rounded to bf16: the upper half of an f32, ties to even.
fn bf16(x: f64) -> f64 {
    let bits = (x as f32).to_bits();
    f64::from(f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000))
}

proptest! {
    // Objective 18
    #[test]
    fn p18_numbers_widened_before_the_subtraction_decide_exactly(
        tokens in prop::collection::vec((-8.0f32..0.0, -2e-3f32..2e-3), 1..64),
        advantage in nonzero_advantage(),
    ) {
        let narrow: Vec<(f32, f32)> = tokens.iter().map(|&(behavior, drift)| (behavior + drift, behavior)).collect();
        // The difference of two such f32 numbers is exact in units of 2⁻⁴⁸ and so is its integer
        // sum.
        let unit = 2f64.powi(48);
        let exact: i128 = narrow.iter().map(|&(a, b)| ((f64::from(a) - f64::from(b)) * unit) as i128).sum();
        let log_ratio = exact as f64 / unit / narrow.len() as f64;
        let clip = Clip::PAPER_GSPO;
        let clipped = if advantage > 0.0 { log_ratio > clip.high().ln_1p() } else { log_ratio < (-clip.low()).ln_1p() };
        let wide = Tokens {
            logprobs: narrow.iter().map(|pair| f64::from(pair.0)).collect(),
            behavior_logprobs: narrow.iter().map(|pair| f64::from(pair.1)).collect(),
            advantages: vec![advantage; narrow.len()],
        };
        let (evaluated, gradient) = evaluate(&gspo_token(clip), &wide.per_token());
        prop_assert!((evaluated.stats.log_ratio - log_ratio).abs() <= f64::EPSILON * log_ratio.abs());
        prop_assert_eq!(gradient[0] == 0.0, clipped);
    }
}

// Objective 18
#[test]
fn p18_bf16_cannot_see_the_paper_s_range() {
    let clip = Clip::PAPER_GSPO;
    assert_eq!((bf16(1.0 + clip.high()), bf16(1.0 - clip.low())), (1.0, 1.0));
    // Seven times the bound in f64; the difference of bf16 numbers is 0.
    let (logprob, behavior_logprob) = (-1.5 + 3e-3, -1.5);
    let wide = Tokens {
        logprobs: vec![logprob],
        behavior_logprobs: vec![behavior_logprob],
        advantages: vec![1.0],
    };
    let narrow = Tokens {
        logprobs: vec![bf16(logprob)],
        behavior_logprobs: vec![bf16(behavior_logprob)],
        ..wide.clone()
    };
    assert_eq!(evaluate(&gspo(clip), &wide.per_token()).0.stats.n_clipped_high, 1);
    assert_eq!(evaluate(&gspo(clip), &narrow.per_token()).0.stats.log_ratio, 0.0);
}
