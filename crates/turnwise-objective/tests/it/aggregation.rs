//! Sequences, rows, micro-batches and steps: how tokens are grouped does not change the numbers.

use proptest::prelude::*;
use turnwise_objective::{
    Advantages, Cispo, Clip, Dapo, Denominator, DrGrpo, Grpo, LengthWeight, Metrics, Objective,
    ObjectiveError, Reinforce, Sequence, SequenceLoss, StepSize, evaluate_step,
};

use crate::support::*;

/// Returns the objectives that do not depend on the order of a sequence's tokens.
fn token_objectives(clip: Clip) -> [Box<dyn Objective>; 6] {
    [
        Box::new(gspo_token(clip)),
        Box::new(Grpo { clip }),
        Box::new(Dapo { clip }),
        Box::new(DrGrpo { clip, max_tokens: 32 }),
        Box::new(Cispo::new(None, clip.high()).unwrap()),
        Box::new(Reinforce { length_weight: LengthWeight::Mean }),
    ]
}

/// Returns a permutation of 0..n made of arbitrary keys.
fn order(n: usize, keys: &[u32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_key(|&position| (keys[position % keys.len()], position));
    order
}

proptest! {
    // Objective 13
    #[test]
    fn p13_what_surrounds_the_trainable_tokens_is_never_read(
        clip in clips(),
        tokens in f32_tokens(0),
        before in 0usize..9,
        after in 0usize..9,
        garbage in prop::sample::select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e30]),
    ) {
        let within = |column: &[f64]| {
            let mut padded = vec![garbage; before];
            padded.extend(column);
            padded.extend(vec![garbage; after]);
            padded
        };
        let (logprobs, behavior_logprobs) = (within(&tokens.logprobs), within(&tokens.behavior_logprobs));
        let (advantages, here) = (within(&tokens.advantages), before..before + tokens.len());
        let embedded = Sequence::new(
            &logprobs[here.clone()],
            &behavior_logprobs[here.clone()],
            Advantages::PerToken(&advantages[here.clone()]),
        )
        .unwrap();
        for objective in every_objective(clip) {
            let (alone, gradient) = evaluate(objective.as_ref(), &tokens.per_token());
            let mut surrounded = vec![garbage; before + tokens.len() + after];
            prop_assert_eq!(objective.evaluate(&embedded, &mut surrounded[here.clone()]).unwrap(), alone);
            prop_assert_eq!(&surrounded[here.clone()], &gradient[..]);
            let outside = |position: &usize| !here.contains(position);
            let untouched = |position: usize| surrounded[position].to_bits() == garbage.to_bits();
            prop_assert!((0..surrounded.len()).filter(outside).all(untouched));
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
            let step = evaluate_step(objective.as_ref(), &[with.per_token()]).unwrap();
            prop_assert_eq!(step, evaluate_step(objective.as_ref(), &[other.per_token()]).unwrap());
        }
    }

    // Objective 14
    #[test]
    fn p14_the_order_of_tokens_does_not_matter(clip in clips(), tokens in f32_tokens(0), keys in prop::array::uniform20(any::<u32>())) {
        let order = order(tokens.len(), &keys);
        for objective in token_objectives(clip) {
            let (evaluated, gradient) = evaluate(objective.as_ref(), &tokens.per_token());
            let (shuffled, shuffled_gradient) = evaluate(objective.as_ref(), &tokens.pick(&order).per_token());
            prop_assert_eq!(evaluated.stats.log_ratio, shuffled.stats.log_ratio);
            prop_assert!(close(evaluated.loss, shuffled.loss, 2e-15));
            let back: Vec<f64> = order.iter().map(|&position| gradient[position]).collect();
            // Which tokens share a chunk decides how GRPO's exponential is computed, to one
            // rounding.
            prop_assert!(all_close(&back, &shuffled_gradient, 1e-15));
        }
    }

    // Objective 14
    #[test]
    fn p14_the_order_of_sequences_does_not_matter(
        clip in clips(),
        step in prop::collection::vec(f32_tokens(0), 1..12),
        keys in prop::array::uniform20(any::<u32>()),
    ) {
        let order = order(step.len(), &keys);
        let sequences: Vec<Sequence> = step.iter().map(Tokens::per_token).collect();
        let shuffled: Vec<Sequence> = order.iter().map(|&position| sequences[position]).collect();
        for objective in every_objective(clip) {
            let straight = evaluate_step(objective.as_ref(), &sequences).unwrap();
            let other = evaluate_step(objective.as_ref(), &shuffled).unwrap();
            let size: f64 = sequences.iter().map(|s| evaluate(objective.as_ref(), s).0.loss.abs()).sum();
            prop_assert!((straight.loss - other.loss).abs() <= 2.0 * f64::EPSILON * size);
            for (position, gradient) in order.iter().zip(&other.gradients) {
                prop_assert_eq!(&straight.gradients[*position], gradient);
            }
        }
    }

    // Objective 14
    #[test]
    fn p14_micro_batches_change_nothing(
        clip in clips(),
        step in prop::collection::vec(f32_tokens(0), 1..12),
        cuts in prop::collection::vec(1usize..4, 12),
    ) {
        for objective in every_objective(clip) {
            let sequences: Vec<Sequence> = step.iter().map(Tokens::per_token).collect();
            let whole = evaluate_step(objective.as_ref(), &sequences).unwrap();
            let size = StepSize::from_lengths(step.iter().map(Tokens::len));
            let denominator = objective.denominator().value(&size);
            let (mut rest, mut loss, mut gradients, mut metrics) = (&sequences[..], 0.0, Vec::new(), Metrics::default());
            for cut in cuts.iter().cycle() {
                let (micro_batch, remaining) = rest.split_at((*cut).min(rest.len()));
                rest = remaining;
                let mut own = Metrics::default();
                for sequence in micro_batch {
                    let (evaluated, gradient) = evaluate(objective.as_ref(), sequence);
                    loss += evaluated.loss / denominator;
                    gradients.push(gradient.iter().map(|c| c / denominator).collect::<Vec<_>>());
                    own.record(&evaluated);
                }
                metrics.merge(&own);
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert!(close(loss, whole.loss, 1e-14));
            prop_assert_eq!(gradients, whole.gradients);
            prop_assert_eq!(metrics.clip_fraction_by_token(), whole.metrics.clip_fraction_by_token());
            prop_assert!(close(metrics.log_ratio_mean(), whole.metrics.log_ratio_mean(), 1e-14));
            prop_assert!(close(metrics.log_ratio_std(), whole.metrics.log_ratio_std(), 1e-13));
            prop_assert!(close(metrics.k3_mean(), whole.metrics.k3_mean(), 1e-14));
            prop_assert!(close(metrics.effective_sample_size(), whole.metrics.effective_sample_size(), 1e-13));
        }
    }

    // Objective 15
    #[test]
    fn p15_empty_sequences_add_nothing_and_do_not_count(
        clip in clips(),
        step in prop::collection::vec(f32_tokens(0), 0..8),
        n_empty in 0usize..4,
    ) {
        let empty = Tokens::default();
        let filled: Vec<Sequence> = step.iter().filter(|tokens| tokens.len() > 0).map(Tokens::per_token).collect();
        let mut padded = filled.clone();
        padded.extend(vec![empty.uniform(f64::NAN); n_empty]);
        for objective in every_objective(clip) {
            let without = evaluate_step(objective.as_ref(), &filled).unwrap();
            let with = evaluate_step(objective.as_ref(), &padded).unwrap();
            prop_assert_eq!(without.loss, with.loss);
            prop_assert_eq!(&without.gradients[..], &with.gradients[..filled.len()]);
            prop_assert_eq!(with.metrics.n_sequences(), filled.len());
            prop_assert_eq!(with.metrics.n_empty(), n_empty);
        }
    }
}

// Objective 15
#[test]
fn p15_a_step_without_tokens_has_loss_zero_and_defined_metrics() {
    for objective in every_objective(Clip::PAPER_GSPO) {
        for n in [0, 3] {
            let empty = Tokens::default();
            let step = evaluate_step(objective.as_ref(), &vec![empty.per_token(); n]).unwrap();
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
    let sequence = Sequence::new(&two, &two, Advantages::Uniform(1.0)).unwrap();
    for objective in objectives(Clip::PAPER_GSPO) {
        assert_eq!(
            objective.evaluate(&sequence, &mut [0.0; 3]).unwrap_err(),
            mismatch("gradient", 3)
        );
    }
}
