//! Publication of weights from a learner to the engine.

use std::sync::Arc;

use turnwise_candle::{AdamW, CandleLearner, Decoder};
use turnwise_gguf::{GgufError, GgufPolicy, GgufSettings, Quantization};
use turnwise_rollout::{Policy, PolicyError, SampleRequest, check_sample};
use turnwise_training::{Learner, Row, Target, Update};
use turnwise_trajectory::{PolicyVersion, SampledToken};

use crate::support::{ROUNDING, block_on, families, fixture, peaked, request, small, tokens};

fn trained() -> Decoder {
    peaked(small(families()[0].clone()), 1, 20.0)
}

fn learner() -> CandleLearner {
    CandleLearner::new(trained(), AdamW::default()).unwrap()
}

/// Returns a row in which everything after the prompt is a target.
fn row(prompt: &[u32], drawn: &[SampledToken]) -> Row {
    let ids: Vec<u32> = prompt.iter().copied().chain(drawn.iter().map(|token| token.id)).collect();
    let target = |position| Target { position, temperature: 1.0 };
    let targets = (prompt.len()..ids.len()).map(target).collect();
    Row { ids, targets, ..Row::default() }
}

/// Takes a step that is large enough to be visible.
async fn train(learner: &mut CandleLearner) {
    let ids = tokens(8, 40, 97);
    let target = |position| Target { position, temperature: 1.0 };
    let targets: Vec<Target> = (1..ids.len()).map(target).collect();
    let likelihood = vec![vec![-1.0; targets.len()]];
    let row = Row { ids, targets, ..Row::default() };
    learner.accumulate(&[row], &mut |_| Ok(likelihood.clone())).await.unwrap();
    let update = Update { learning_rate: 1e-2, max_grad_norm: 1e9 };
    assert!(learner.step(update).await.unwrap().applied);
}

fn largest_gap(drawn: &[SampledToken], logprobs: &[f32]) -> f32 {
    let pairs = drawn.iter().zip(logprobs);
    pairs.map(|(token, logprob)| (token.logprob - logprob).abs()).fold(0.0, f32::max)
}

#[test]
fn the_engine_draws_with_the_weights_that_were_published_last() {
    block_on(async {
        let mut learner = learner();
        let settings = GgufSettings { threads: 2, ..GgufSettings::default() };
        let policy = GgufPolicy::following(&learner, Quantization::F32, settings).await.unwrap();
        for version in 0..4 {
            assert_eq!(policy.version(), PolicyVersion(version));
            for session in 0..3 {
                let min_version = PolicyVersion(version);
                let asked =
                    SampleRequest { min_version, ..request(session, tokens(2, 30, 97), 20) };
                let sample = policy.sample(asked.clone()).await.unwrap();
                check_sample(&sample, &asked).unwrap();
                assert!(sample.tokens.iter().all(|token| token.version.0 == version));
                let rows = [row(&asked.prompt, &sample.tokens)];
                let logprobs = learner.logprobs(&rows).await.unwrap().remove(0);
                let gap = largest_gap(&sample.tokens, &logprobs);
                assert!(gap < ROUNDING, "{gap} nats at version {version}");
            }
            train(&mut learner).await;
            let newer = SampleRequest {
                min_version: PolicyVersion(version + 1),
                ..request(9, tokens(2, 30, 97), 2)
            };
            let early = policy.sample(newer).await;
            assert!(matches!(early, Err(PolicyError::Refused(_))), "stepped, not published");
            learner.publish().await.unwrap();
        }
    });
}

/// Each token belongs to one version, also if versions change in the middle of an answer.
#[test]
fn weights_that_change_in_mid_answer_are_stamped_on_the_tokens_they_drew() {
    block_on(async {
        let mut learner = learner();
        let settings = GgufSettings::default();
        let policy = GgufPolicy::following(&learner, Quantization::F32, settings).await.unwrap();
        let prompt = tokens(2, 10, 97);
        let asked = request(1, prompt.clone(), 149);
        let drawing = {
            let (policy, asked) = (policy.clone(), asked.clone());
            tokio::spawn(async move { policy.sample(asked).await.unwrap() })
        };
        tokio::task::yield_now().await;
        for _ in 0..3 {
            train(&mut learner).await;
            learner.publish().await.unwrap();
        }
        let sample = drawing.await.unwrap();
        check_sample(&sample, &asked).unwrap();
        assert!(sample.tokens.iter().all(|token| token.kv_version == token.version));
        // The log-probabilities of the last version are those of its weights, whichever weights sampled the earlier
        // tokens.
        let newest = policy.version();
        let logprobs = learner.logprobs(&[row(&prompt, &sample.tokens)]).await.unwrap().remove(0);
        for (token, logprob) in sample.tokens.iter().zip(logprobs) {
            if token.version == newest {
                assert!((token.logprob - logprob).abs() < ROUNDING);
            }
        }
    });
}

#[test]
fn a_checkpoint_that_is_loaded_is_served_under_its_version() {
    block_on(async {
        let mut learner = learner();
        let settings = GgufSettings::default();
        let policy = GgufPolicy::following(&learner, Quantization::Q8_0, settings).await.unwrap();
        let asked = request(1, tokens(2, 10, 97), 20);
        let first = policy.sample(asked.clone()).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        learner.save(directory.path()).await.unwrap();
        train(&mut learner).await;
        learner.publish().await.unwrap();
        assert_ne!(policy.sample(asked.clone()).await.unwrap().tokens, first.tokens);
        learner.load(directory.path(), PolicyVersion(0)).await.unwrap();
        assert_eq!(policy.version(), PolicyVersion(0));
        assert_eq!(policy.sample(asked).await.unwrap(), first);
    });
}

#[test]
fn what_the_engine_cannot_run_is_refused_before_it_starts() {
    block_on(async {
        let mut learner =
            CandleLearner::new(fixture("llama_rope_llama3"), AdamW::default()).unwrap();
        let settings = GgufSettings::default();
        let refused = GgufPolicy::following(&learner, Quantization::F32, settings).await;
        assert!(matches!(refused, Err(GgufError::Unsupported(_))));
        assert_eq!(learner.publish().await.unwrap(), PolicyVersion(1), "the learner goes on");
    });
}

#[test]
fn a_learner_outlives_its_engine_and_an_engine_its_learner() {
    block_on(async {
        let mut learner = learner();
        let settings = GgufSettings::default();
        let follow = || GgufPolicy::following(&learner, Quantization::F32, settings);
        let (first, second) = (follow().await.unwrap(), Arc::new(follow().await.unwrap()));
        drop(first);
        learner.publish().await.unwrap();
        assert_eq!(second.version(), PolicyVersion(1));
        drop(learner);
        let sample = second.sample(request(1, tokens(2, 10, 97), 5)).await.unwrap();
        assert_eq!(sample.tokens.len(), 5);
    });
}

/// A follower that refuses.
#[test]
fn weights_that_a_follower_refuses_are_not_published() {
    block_on(async {
        let mut learner = learner();
        let refuse = |version: PolicyVersion, _: &Decoder| match version.0 {
            0 => Ok(()),
            _ => Err("no more".into()),
        };
        learner.on_publish(refuse).await.unwrap();
        let refused = learner.publish().await.unwrap_err();
        assert!(refused.to_string().contains("hand over weights"), "{refused}");
        assert_eq!(learner.version(), PolicyVersion(0));
        let refuse_all = |_: PolicyVersion, _: &Decoder| Err("none".into());
        assert!(learner.on_publish(refuse_all).await.is_err());
    });
}
