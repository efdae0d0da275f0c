//! Sequences, rows, micro-batches and steps: how tokens are grouped does not change the numbers.

use proptest::prelude::*;
use turnwise_objective::{
    Advantages, Clip, Denominator, Metrics, Objective, ObjectiveError, Sequence, SequenceLoss,
    evaluate_step,
};
use turnwise_testkit::objectives::{
    check_buffer_length, check_empty_sequences, check_micro_batches, check_padding,
    check_sequence_order, check_token_order,
};

use crate::support::*;

proptest! {
    // Objective 13
    #[test]
    fn p13_what_surrounds_the_trainable_tokens_is_never_read(clip in clips(), tokens in f32_tokens(0)) {
        for objective in every_objective(clip) {
            check_padding(&*objective, &tokens)?;
        }
    }

    // Objective 13
    #[test]
    fn p13_inserted_environment_tokens_leave_every_bit_alone(
        clip in clips(),
        row in prop::collection::vec((any::<bool>(), -8.0f64..0.0, -0.3f64..0.3, -2.0f64..2.0), 0..60),
    ) {
        // A row as a renderer makes it, with environment tokens in between; the selected columns do
        // not contain them.
        let select = |tokens: &[(bool, f64, f64, f64)]| {
            let sampled: Vec<_> = tokens.iter().filter(|token| token.0).collect();
            Tokens {
                logprobs: sampled.iter().map(|token| token.1 + token.2).collect(),
                behavior_logprobs: sampled.iter().map(|token| token.1).collect(),
                advantages: sampled.iter().map(|token| token.3).collect(),
            }
        };
        let rewritten: Vec<_> = row
            .iter()
            .flat_map(|&token| if token.0 { vec![token] } else { vec![(false, f64::NAN, 1e30, f64::NAN); 3] })
            .collect();
        let (with, other) = (select(&row), select(&rewritten));
        for objective in every_objective(clip) {
            let step = |tokens: &Tokens| evaluate_step(&Fitted(&*objective), &[tokens.per_token()]).unwrap();
            prop_assert_eq!(step(&with), step(&other));
        }
    }

    // Objective 14
    #[test]
    fn p14_a_gradient_that_is_scaled_as_it_is_written_has_the_bits_of_one_scaled_later(
        clip in clips(),
        tokens in f32_tokens(0),
        scale in -2.0f64..2.0,
    ) {
        for objective in every_objective(clip) {
            for sequence in [tokens.per_token(), tokens.uniform(0.7), tokens.uniform(-0.7)] {
                let mut gradients = [vec![0.0; sequence.len()], vec![0.0; sequence.len()]];
                let plain = objective.evaluate(&sequence, &mut gradients[0]);
                prop_assert_eq!(&plain, &objective.evaluate_scaled(&sequence, &mut gradients[1], scale));
                if plain.is_ok() {
                    gradients[0].iter_mut().for_each(|slot| *slot *= scale);
                    prop_assert_eq!(&gradients[0], &gradients[1]);
                }
            }
        }
    }

    // Objective 14
    #[test]
    fn p14_the_order_of_tokens_does_not_matter(
        clip in clips(),
        (tokens, order) in f32_tokens(0).prop_flat_map(|tokens| {
            let order = orders(tokens.len());
            (Just(tokens), order)
        }),
    ) {
        for objective in every_objective(clip).iter().filter(|objective| !objective.needs_turns()) {
            check_token_order(&**objective, &tokens, &order)?;
            let log_ratio = |tokens: &Tokens| evaluate(&**objective, &tokens.per_token()).0.stats.log_ratio;
            prop_assert_eq!(log_ratio(&tokens), log_ratio(&tokens.pick(&order)));
        }
    }

    // Objective 14
    #[test]
    fn p14_the_order_of_sequences_does_not_matter(
        clip in clips(),
        (step, order) in steps().prop_flat_map(|step| {
            let order = orders(step.len());
            (Just(step), order)
        }),
    ) {
        for objective in every_objective(clip) {
            check_sequence_order(&*objective, &step, &order)?;
        }
    }

    // Objective 14
    #[test]
    fn p14_micro_batches_change_nothing(
        clip in clips(),
        step in steps(),
        cuts in prop::collection::vec(1usize..4, 12),
    ) {
        for objective in every_objective(clip) {
            check_micro_batches(&*objective, &step, &cuts)?;
        }
    }

    // Objective 14
    #[test]
    fn p14_metrics_of_micro_batches_are_those_of_the_step(clip in clips(), step in steps(), cut in 1usize..4) {
        for objective in every_objective(clip) {
            let sequences: Vec<Sequence> = step.iter().map(Tokens::per_token).collect();
            let metrics_of = |part: &[Sequence<'_>]| evaluate_step(&Fitted(&*objective), part).unwrap().metrics;
            let whole = metrics_of(&sequences);
            let mut merged = Metrics::default();
            sequences.chunks(cut).for_each(|part| merged.merge(&metrics_of(part)));
            prop_assert_eq!(merged.clip_fraction_by_token(), whole.clip_fraction_by_token());
            prop_assert!(close(merged.log_ratio_mean(), whole.log_ratio_mean(), 1e-14));
            prop_assert!(close(merged.log_ratio_std(), whole.log_ratio_std(), 1e-13));
            prop_assert!(close(merged.k3_mean(), whole.k3_mean(), 1e-14));
            prop_assert!(close(merged.effective_sample_size(), whole.effective_sample_size(), 1e-13));
        }
    }

    // Objective 15
    #[test]
    fn p15_empty_sequences_add_nothing_and_do_not_count(
        clip in clips(),
        step in prop::collection::vec(f32_tokens(1), 0..8),
        n_empty in 0usize..4,
    ) {
        let empty = Tokens::default();
        for objective in every_objective(clip) {
            check_empty_sequences(&*objective, &step, n_empty)?;
            let mut sequences: Vec<Sequence> = step.iter().map(Tokens::per_token).collect();
            sequences.extend(vec![empty.uniform(f64::NAN); n_empty]);
            let metrics = evaluate_step(&Fitted(&*objective), &sequences).unwrap().metrics;
            prop_assert_eq!((metrics.n_sequences(), metrics.n_empty()), (step.len(), n_empty));
        }
    }
}

// Objective 15
#[test]
fn p15_a_step_without_tokens_has_loss_zero_and_defined_metrics() {
    for objective in every_objective(Clip::PAPER_GSPO) {
        for n in [0, 3] {
            let empty = Tokens::default();
            let empties = vec![empty.per_token(); n];
            let step = evaluate_step(&Fitted(&*objective), &empties).unwrap();
            assert_eq!((step.loss, step.gradients), (0.0, vec![Vec::new(); n]));
            let metrics = step.metrics;
            let zeros = [
                metrics.tokens_per_sequence(),
                metrics.advantage_fraction(),
                metrics.log_ratio_mean(),
                metrics.log_ratio_std(),
                metrics.clip_fraction_by_token().total(),
                metrics.clip_fraction_by_sequence().total(),
                metrics.gap_live_fraction(),
                metrics.gap_mean(),
                metrics.k3_mean(),
                metrics.effective_sample_size(),
                metrics.truncated_fraction(),
                metrics.kl_mean(),
            ];
            assert_eq!(zeros, [0.0; 12]);
            assert_eq!(metrics.window_over_std(Clip::PAPER_GSPO), None);
            assert_eq!((metrics.n_sequences(), metrics.n_empty()), (0, n));
        }
    }
}

#[test]
fn a_step_is_divided_by_what_its_objective_names() {
    #[derive(Debug)]
    struct CountTokens(Denominator);
    impl Objective for CountTokens {
        fn name(&self) -> &'static str {
            "count_tokens"
        }
        fn denominator(&self) -> Denominator {
            self.0
        }
        fn evaluate(
            &self,
            sequence: &Sequence<'_>,
            gradient: &mut [f64],
        ) -> Result<SequenceLoss, ObjectiveError> {
            gradient.fill(1.0);
            Ok(SequenceLoss { loss: sequence.len() as f64, ..SequenceLoss::default() })
        }
    }
    let (long, short) = (Tokens::drifted(&[0.0; 5], &[1.0; 5]), Tokens::drifted(&[0.0], &[1.0]));
    let sequences = [long.per_token(), short.per_token()];
    let cases = [
        (Denominator::Sequences, 2.0),
        (Denominator::Tokens, 6.0),
        (Denominator::Constant(24.0), 24.0),
    ];
    for (denominator, value) in cases {
        let step = evaluate_step(&CountTokens(denominator), &sequences).unwrap();
        assert_eq!((step.loss, step.gradients[1][0]), (6.0 / value, 1.0 / value));
    }
    for value in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let refused = evaluate_step(&CountTokens(Denominator::Constant(value)), &sequences);
        assert!(matches!(refused, Err(ObjectiveError::InvalidDenominator { .. })));
    }
}

#[test]
fn columns_of_different_lengths_are_refused() {
    let mismatch = |slice, actual| ObjectiveError::LengthMismatch { slice, expected: 2, actual };
    let (two, three) = ([-1.0; 2], [-1.0; 3]);
    let refused = Sequence::new(&two, &three, Advantages::Uniform(1.0)).unwrap_err();
    assert_eq!(refused, mismatch("behavior_logprobs", 3));
    let refused = Sequence::new(&two, &two, Advantages::PerToken(&[])).unwrap_err();
    assert_eq!(refused, mismatch("advantages", 0));
    for objective in every_objective(Clip::PAPER_GSPO) {
        check_buffer_length(&*objective).unwrap();
    }
}
