//! Numbers at the edge of f64 and beyond.

use std::error::Error;

use proptest::prelude::*;
use turnwise_objective::{
    Advantages, Clip, Grpo, MAX_LOG_RATIO, Objective, ObjectiveError, Sequence, evaluate_step,
};
use turnwise_testkit::objectives::{check_finite, check_refusals};

use crate::support::*;

const CLIP: Clip = Clip::PAPER_GRPO;

fn refusal(objective: &dyn Objective, tokens: &Tokens) -> ObjectiveError {
    objective.evaluate(&tokens.per_token(), &mut vec![0.0; tokens.len()]).unwrap_err()
}

// Objective 16
#[test]
fn p16_a_ratio_that_overflows_is_clipped_where_the_advantage_is_positive() {
    for log_ratio in [50.0, 800.0, 1e300] {
        let tokens = Tokens::drifted(&[log_ratio; 3], &[2.0; 3]);
        for objective in objectives(CLIP) {
            let (evaluated, gradient) = evaluate(objective.as_ref(), &tokens.per_token());
            assert!(close(evaluated.loss, -2.0 * 1.27, 1e-15), "{objective:?}");
            assert_eq!(gradient, [0.0; 3]);
            assert_eq!((evaluated.stats.n_clipped_high, evaluated.stats.n_capped), (3, 0));
        }
    }
}

// Objective 16
#[test]
fn p16_a_ratio_that_overflows_is_cut_but_keeps_its_gradient_where_the_advantage_is_negative() {
    let at = |log_ratio: f64, objective: &dyn Objective| {
        let (evaluated, gradient) =
            evaluate(objective, &Tokens::drifted(&[log_ratio; 2], &[-1.0; 2]).per_token());
        (evaluated.loss, gradient[0], evaluated.stats.n_capped)
    };
    for objective in objectives(CLIP) {
        let limit = MAX_LOG_RATIO.exp();
        assert_eq!(at(MAX_LOG_RATIO, objective.as_ref()), (limit, limit / 2.0, 0));
        for beyond in [600.0, 800.0, 1e300] {
            assert_eq!(at(beyond, objective.as_ref()), (limit, limit / 2.0, 2));
        }
        let (loss, gradient, _) = at(100.0, objective.as_ref());
        assert_eq!((loss, gradient), (100f64.exp(), 100f64.exp() / 2.0));
    }
}

// Objective 16
#[test]
fn p16_a_ratio_of_zero_is_a_number() {
    for log_ratio in [-800.0, f64::NEG_INFINITY] {
        for objective in objectives(CLIP) {
            let (gain, gradient) = evaluate(
                objective.as_ref(),
                &Tokens::drifted(&[log_ratio; 2], &[1.0; 2]).per_token(),
            );
            assert_eq!((gain.loss, gradient), (0.0, vec![0.0; 2]), "{objective:?}");
            assert_eq!(gain.stats.n_clipped_low + gain.stats.n_clipped_high, 0);
            let (loss, gradient) = evaluate(
                objective.as_ref(),
                &Tokens::drifted(&[log_ratio; 2], &[-1.0; 2]).per_token(),
            );
            assert_eq!((loss.loss, gradient), (0.8, vec![0.0; 2]), "{objective:?}");
            assert_eq!(loss.stats.n_clipped_low, 2);
            assert!(loss.stats.k3_sum.is_finite());
        }
    }
}

// Objective 16
#[test]
fn p16_one_impossible_token_makes_the_sequence_impossible_and_no_other() {
    let impossible = Tokens::drifted(&[0.0, f64::NEG_INFINITY, 0.0], &[1.0, 1.0, -1.0]);
    let possible = Tokens::drifted(&[0.1], &[1.0]);
    let step =
        evaluate_step(&gspo_token(CLIP), &[impossible.per_token(), possible.per_token()]).unwrap();
    assert_eq!(step.gradients[0], [0.0; 3]);
    assert!(step.gradients[1][0] < 0.0);
    assert_eq!(step.metrics.n_impossible(), 1);
    assert!(close(step.metrics.log_ratio_mean(), 0.1, 1e-15));
    assert_eq!(step.metrics.log_ratio_std(), 0.0);
    assert!(close(step.metrics.effective_sample_size(), 1.0, 1e-15));
    assert!(step.metrics.k3_mean().is_finite());
    let (_, gradient) = evaluate(&Grpo { clip: CLIP }, &impossible.per_token());
    assert_eq!(gradient, [-1.0 / 3.0, 0.0, 1.0 / 3.0]);
}

// Objective 16
#[test]
fn p16_large_ratios_do_not_overflow_the_effective_sample_size() {
    let tokens = [Tokens::drifted(&[900.0], &[-1.0]), Tokens::drifted(&[900.0], &[-1.0])];
    let step =
        evaluate_step(&gspo(CLIP), &[tokens[0].uniform(-1.0), tokens[1].uniform(-1.0)]).unwrap();
    assert_eq!(step.metrics.effective_sample_size(), 2.0);
    assert_eq!((step.metrics.n_capped_sequences(), step.metrics.n_capped_tokens()), (2, 2));
}

// Objective 16
#[test]
fn p16_a_loss_beyond_f64_is_an_error() {
    let tokens = Tokens::drifted(&[900.0], &[-1e200]);
    for objective in objectives(CLIP) {
        assert!(matches!(
            refusal(objective.as_ref(), &tokens),
            ObjectiveError::LossOverflow { .. }
        ));
    }
}

// Objective 16
#[test]
fn p16_finite_numbers_that_are_no_log_probabilities_are_an_error() {
    let tokens = Tokens {
        logprobs: vec![1e308; 2],
        behavior_logprobs: vec![-1e308; 2],
        advantages: vec![1.0; 2],
    };
    for objective in objectives(CLIP) {
        let error = refusal(objective.as_ref(), &tokens);
        assert!(
            matches!(error, ObjectiveError::NonFinite { quantity: "log ratio", token: 0, .. }),
            "{error}"
        );
    }
}

proptest! {
    // Objective 16
    #[test]
    fn p16_what_is_not_finite_is_an_error_that_names_its_token_and_sequence(
        n in 1usize..40,
        at in any::<prop::sample::Index>(),
        index in 0usize..4,
    ) {
        let at = at.index(n);
        let sound = Tokens::drifted(&vec![0.01; n], &vec![1.0; n]);
        let mut broken = sound.clone();
        broken.logprobs[at] = f64::NAN;
        let mut step = vec![sound.per_token(); 4];
        step[index] = broken.per_token();
        for objective in every_objective(CLIP) {
            check_refusals(&*objective, n, at)?;
            let error = evaluate_step(&Fitted(&*objective), &step).unwrap_err();
            let is_named = matches!(&error, ObjectiveError::InSequence { index: actual, .. } if *actual == index);
            prop_assert!(is_named, "{}", error);
            let source = error.source().unwrap().to_string();
            prop_assert_eq!(source, format!("logprob of token {at} is NaN"), "{:?}", objective);
        }
    }

    // Objective 16
    #[test]
    fn p16_a_uniform_advantage_that_is_not_finite_is_an_error(
        n in 1usize..20,
        value in prop::sample::select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY]),
        log_ratio in prop::sample::select(vec![-800.0, -0.5, 0.0, 0.5, 800.0]),
    ) {
        let tokens = Tokens::drifted(&vec![log_ratio; n], &[]);
        for objective in every_objective(CLIP) {
            let sequence = Sequence::new(
                &tokens.logprobs, &tokens.behavior_logprobs, Advantages::Uniform(value)).unwrap();
            let refused = Fitted(&*objective).evaluate(&sequence, &mut vec![0.0; n]);
            let named = matches!(refused, Err(ObjectiveError::NonFinite { quantity: "advantage", token: 0, .. }));
            prop_assert!(named, "{:?}", refused);
        }
    }

    // Objective 16
    #[test]
    fn p16_every_finite_log_ratio_has_a_finite_loss_and_gradient(
        log_ratios in prop::collection::vec(prop_oneof![-1e6..1e6, Just(f64::NEG_INFINITY), -1.0..1.0], 1..24),
        credit in prop::collection::vec(-1e6..1e6, 24),
    ) {
        let tokens = Tokens::drifted(&log_ratios, &credit[..log_ratios.len()]);
        for objective in every_objective(CLIP) {
            check_finite(&*objective, &tokens)?;
        }
    }
}
