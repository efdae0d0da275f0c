//! Tokens sampled from a part of the vocabulary.

use std::collections::BTreeMap;
use std::sync::Arc;

use turnwise_rollout::{Answers, Policy, Sample, SampleRequest};
use turnwise_training::{Learner, LearnerError, Row, Target};
use turnwise_trajectory::{Sampling, TokenId};

use super::block_on;
use super::engine::{ids, prompt, request};
use crate::{AdamW, CandleLearner, CandlePolicy, Decoder, DecoderConfig, EngineSettings};

const TRUNCATED: [Sampling; 4] = [
    Sampling { temperature: 1.0, top_p: 1.0, top_k: 5, min_p: 0.0 },
    Sampling { temperature: 0.7, top_p: 0.6, top_k: 0, min_p: 0.0 },
    Sampling { temperature: 1.3, top_p: 1.0, top_k: 0, min_p: 0.95 },
    Sampling { temperature: 0.9, top_p: 0.8, top_k: 12, min_p: 0.05 },
];

/// The row of an answer, with the kept ids of each target.
fn row(request: &SampleRequest, sample: &Sample) -> Row {
    let start = request.prompt.len();
    let target =
        |index| Target { position: start + index, temperature: request.sampling.temperature };
    Row {
        ids: [request.prompt.clone(), ids(&sample.tokens)].concat(),
        targets: (0..sample.tokens.len()).map(target).collect(),
        kept: sample
            .kept
            .iter()
            .cloned()
            .enumerate()
            .filter(|(_, kept)| !kept.is_empty())
            .collect(),
    }
}

const VOCAB_SIZE: usize = 97;

/// A new model, whose distributions are flat: truncation removes a good part of them.
fn model() -> Decoder {
    Decoder::random(DecoderConfig::small(VOCAB_SIZE), 1).unwrap()
}

fn policy() -> CandlePolicy {
    CandlePolicy::new(&model(), EngineSettings::default()).unwrap()
}

fn learner() -> CandleLearner {
    CandleLearner::new(model(), AdamW::default()).unwrap()
}

// Rollouts 11.20: the distribution that the token was sampled from, and not the one over the whole vocabulary.
#[test]
fn the_learner_computes_the_log_probabilities_that_a_truncated_distribution_was_sampled_with() {
    block_on(async {
        let (policy, mut learner) = (policy(), learner());
        let mut n_smaller = 0;
        for (session, sampling) in TRUNCATED.into_iter().enumerate() {
            let session = session as u64;
            let request =
                SampleRequest { sampling, ..request(session, prompt(4, 30 + session as u32), 24) };
            let sample = policy.sample(request.clone()).await.unwrap();
            assert_eq!(sample.kept.len(), sample.tokens.len(), "{sampling:?}");
            let computed = learner.logprobs(&[row(&request, &sample)]).await.unwrap();
            for (token, computed) in sample.tokens.iter().zip(&computed[0]) {
                assert!(
                    (token.logprob - computed).abs() < 1e-5,
                    "{sampling:?} {token:?} {computed}"
                );
            }
            // The whole vocabulary is another distribution, as far as anything was removed.
            let whole = Row { kept: BTreeMap::new(), ..row(&request, &sample) };
            let whole = learner.logprobs(&[whole]).await.unwrap();
            let is_smaller = sample.kept.iter().any(|kept| kept.len() < VOCAB_SIZE);
            let differs = whole[0].iter().zip(&computed[0]).any(|(a, b)| (a - b).abs() > 1e-4);
            assert_eq!(differs, is_smaller, "{sampling:?}");
            n_smaller += usize::from(is_smaller);
        }
        assert!(n_smaller >= 3, "{n_smaller} of {} removed anything", TRUNCATED.len());
    });
}

#[test]
fn the_learner_computes_the_log_probabilities_that_a_constraint_left() {
    block_on(async {
        let (policy, mut learner) = (policy(), learner());
        let answers = Arc::new(Answers::new([vec![5, 9, 2], vec![5, 7, 7, 2], vec![61, 2]]));
        for sampling in [Sampling::default(), TRUNCATED[1]] {
            let request =
                SampleRequest { stop: vec![2], sampling, ..request(3, prompt(4, 40), 10) };
            let sample = policy.sample_constrained(request.clone(), answers.clone()).await.unwrap();
            let computed = learner.logprobs(&[row(&request, &sample)]).await.unwrap();
            for (token, computed) in sample.tokens.iter().zip(&computed[0]) {
                assert!(
                    (token.logprob - computed).abs() < 1e-5,
                    "{sampling:?} {token:?} {computed}"
                );
            }
        }
    });
}

#[test]
fn kept_ids_that_cannot_be_right_are_refused() {
    block_on(async {
        let mut learner = learner();
        let with = |target: usize, kept: Vec<TokenId>| Row {
            ids: vec![3, 1, 4],
            targets: vec![Target { position: 1, temperature: 1.0 }],
            kept: BTreeMap::from([(target, kept)]),
        };
        for (row, expected) in [
            (with(1, vec![1]), "kept ids for target 1 and 1 targets"),
            (with(0, vec![1, 4000]), "kept id 4000 at position 1"),
            (with(0, vec![3, 4]), "lack the token itself"),
        ] {
            let answer = learner.logprobs(&[row]).await;
            let Err(LearnerError::BadRow { row: 0, reason }) = answer else { panic!("{answer:?}") };
            assert!(reason.contains(expected), "{reason}");
        }
    });
}
