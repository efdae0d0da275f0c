use std::sync::Arc;
use std::time::Duration;

use turnwise_candle::{CandlePolicy, EngineSettings};
use turnwise_gguf::{GgufModel, GgufPolicy, GgufSettings, Quantization, save_gguf};
use turnwise_rollout::{Policy, SampleRequest, SessionId};
use turnwise_testkit::conformance;
use turnwise_trajectory::{Sampling, StopReason};

use crate::support::{block_on, families, peaked, request, small, temporary, tokens};

/// Returns settings that differ in how much is cached, and so in what is recomputed.
fn settings() -> [GgufSettings; 3] {
    let one = GgufSettings::default();
    [one, GgufSettings { threads: 3, ..one }, GgufSettings { max_kv_bytes: 0, ..one }]
}

#[test]
fn every_family_keeps_the_contract_of_an_engine() {
    for architecture in families() {
        let model = peaked(small(architecture), 1, 20.0);
        for (settings, quantization) in
            settings().into_iter().zip([Quantization::F32, Quantization::Q8_0, Quantization::Q4_0])
        {
            let policy = Arc::new(GgufPolicy::new(&model, quantization, settings).unwrap());
            block_on(conformance::policy(policy.clone(), 97));
            block_on(conformance::policy_refusals(policy, 97, 160));
        }
    }
}

/// The suite is not specific to one engine.
#[test]
fn the_trainers_own_engine_keeps_the_same_contract() {
    let model = peaked(small(families()[0].clone()), 1, 20.0);
    let policy = Arc::new(CandlePolicy::new(&model, EngineSettings::default()).unwrap());
    block_on(conformance::policy(policy.clone(), 97));
    block_on(conformance::policy_refusals(policy, 97, 160));
}

#[test]
fn log_probabilities_are_those_of_the_distribution_that_was_drawn_from() {
    let trained = peaked(small(families()[0].clone()), 1, 20.0);
    let mut model = GgufModel::new(&trained, Quantization::Q8_0).unwrap();
    let policy = GgufPolicy::new(&trained, Quantization::Q8_0, GgufSettings::default()).unwrap();
    for temperature in [1.0, 0.7] {
        let sampling = Sampling { temperature, ..Sampling::default() };
        let asked = SampleRequest { sampling, ..request(3, tokens(1, 20, 97), 30) };
        let sample = block_on(policy.sample(asked.clone())).unwrap();
        let mut ids = asked.prompt;
        for token in sample.tokens {
            let logits = model.logits(&ids).unwrap();
            let scaled = logits.iter().map(|logit| f64::from(*logit) / f64::from(temperature));
            let sum: f64 = scaled.map(f64::exp).sum();
            let expected = f64::from(logits[token.id as usize]) / f64::from(temperature) - sum.ln();
            assert!((f64::from(token.logprob) - expected).abs() < 1e-4);
            ids.push(token.id);
        }
    }
}

#[test]
fn an_engine_for_a_file_draws_what_one_for_its_model_draws() {
    let trained = peaked(small(families()[1].clone()), 1, 20.0);
    let (_directory, path) = temporary();
    save_gguf(&trained, &path, Quantization::Q5_1).unwrap();
    let settings = GgufSettings::default();
    let of_file = GgufPolicy::from_file(&path, settings).unwrap();
    let of_model = GgufPolicy::new(&trained, Quantization::Q5_1, settings).unwrap();
    let asked = request(3, tokens(1, 20, 97), 30);
    let drawn = |policy: &GgufPolicy| block_on(policy.sample(asked.clone())).unwrap();
    assert_eq!(drawn(&of_file).tokens, drawn(&of_model).tokens);
    assert_eq!(
        (drawn(&of_file).engine, drawn(&of_model).engine),
        ("gguf".into(), "gguf-q5_1".into())
    );
}

/// Interrupts the request that is being served, and one that waits behind it.
#[test]
fn an_interruption_reaches_a_request_that_waits_and_one_that_draws() {
    let trained = peaked(small(families()[0].clone()), 1, 20.0);
    let policy = GgufPolicy::new(&trained, Quantization::F32, GgufSettings::default()).unwrap();
    block_on(async {
        let ask = |session| {
            let policy = policy.clone();
            let asked = request(session, tokens(1, 10, 97), 140);
            tokio::spawn(async move { policy.sample(asked).await.unwrap() })
        };
        let (drawing, waiting) = (ask(1), ask(2));
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert!(
            policy.interrupt(SessionId(2))
                && policy.interrupt(SessionId(1))
                && policy.interrupt(SessionId(7))
        );
        let (first, second) = (drawing.await.unwrap(), waiting.await.unwrap());
        assert_eq!(second.stop, StopReason::Interrupted);
        assert!(second.tokens.is_empty());
        // The first request may have finished before.
        assert_eq!(first.stop == StopReason::MaxTokens, first.tokens.len() == 140);
    });
}
