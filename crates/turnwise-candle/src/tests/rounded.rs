//! Products in bf16 on the processor, near those in f32 and the same in training and in the engine; and engines in int8.

use turnwise_kernels::matrix::{Accuracy, packing_pays};
use turnwise_rollout::Policy;
use turnwise_training::{Learner, Row, Target, Update};

use super::block_on;
use super::tensors::{advance, assert_close, request, rows, trainer};
use super::variants::{perturbed, variants};
use crate::{
    AdamW, CandleLearner, CandlePolicy, ComputePrecision, EngineCompute, EngineSettings,
    EngineWeights, LearnerSettings, ModelError,
};

fn in_bf16() -> LearnerSettings {
    LearnerSettings { compute: ComputePrecision::Bf16, ..LearnerSettings::default() }
}

#[test]
fn training_in_bf16_follows_training_in_f32() {
    for config in variants() {
        let rows = rows(config.vocab_size as u32);
        let model = || perturbed(config.clone(), 3);
        let (mut full, mut half) =
            (trainer(model(), LearnerSettings::default()), trainer(model(), in_bf16()));
        let logprobs = [&mut full, &mut half].map(|trainer| {
            let (logprobs, pending) = trainer.forward(&rows).unwrap();
            drop(pending);
            logprobs.concat()
        });
        let far = logprobs[0].iter().zip(&logprobs[1]).map(|(a, b)| (a - b).abs());
        let far = far.fold(0.0, f32::max);
        // The choice of experts may change by rounding.
        assert!(far > 0.0 && far < 0.2, "{:?}: {far}", config.architecture);
        for step in 0..3 {
            let norms = [advance(&mut full, &rows), advance(&mut half, &rows)];
            assert!((norms[0] / norms[1] - 1.0).abs() < 0.05, "step {step}: {norms:?}");
            assert_close(&half, &full, 0.1);
        }
    }
}

/// Both round weights and activations in the same way, so that they differ by far less than bf16 and f32 do.
#[test]
fn the_engine_samples_from_the_policy_that_trains_in_bf16() {
    for config in variants() {
        let model = || perturbed(config.clone(), 5).with_precision(ComputePrecision::Bf16);
        let policy = CandlePolicy::new(&model(), EngineSettings::default()).unwrap();
        let mut learner =
            CandleLearner::with_settings(model(), AdamW::default(), in_bf16()).unwrap();
        let (far, mean) = distance(&policy, &mut learner, config.vocab_size as u32);
        // A matrix unit adds in an order of its own, so that more numbers round to the other side.
        let has_unit = packing_pays(64, 64, 64, Accuracy::Full);
        let (most, most_mean) = if has_unit { (5e-2, 5e-3) } else { (2e-2, 1e-3) };
        assert!(far < most && mean < most_mean, "{:?}: {far} {mean}", config.architecture);
    }
}

/// Returns the largest and the mean distance of the engine's log-probabilities from the learner's.
pub(super) fn distance(
    policy: &CandlePolicy,
    learner: &mut CandleLearner,
    vocab_size: u32,
) -> (f32, f32) {
    let prompt: Vec<u32> = (0..20).map(|i| i * 7 % vocab_size).collect();
    let sample = block_on(policy.sample(request(1, prompt.clone(), 40))).unwrap();
    let row = Row {
        ids: prompt.into_iter().chain(sample.tokens.iter().map(|token| token.id)).collect(),
        targets: (20..60).map(|position| Target { position, temperature: 1.0 }).collect(),
        ..Row::default()
    };
    let scored = block_on(learner.logprobs(&[row])).unwrap();
    let far = sample.tokens.iter().zip(&scored[0]).map(|(a, b)| (a.logprob - b).abs());
    (far.clone().fold(0.0, f32::max), far.sum::<f32>() / 40.0)
}

/// Takes a step that makes rows likelier, and publishes its weights.
pub(super) fn train(learner: &mut CandleLearner, vocab_size: u32) {
    block_on(learner.accumulate(&rows(vocab_size), &mut |logprobs| {
        Ok(logprobs.iter().map(|row| vec![-1.0; row.len()]).collect())
    }))
    .unwrap();
    let update = Update { learning_rate: 1e-2, max_grad_norm: 1.0 };
    assert!(block_on(learner.step(update)).unwrap().applied);
    block_on(learner.publish()).unwrap();
}

/// An engine in int8 is near the policy that is trained, before and after a publication, which is packed in int8 at once.
#[test]
fn an_engine_in_int8_follows_the_learner() {
    for compute in [ComputePrecision::F32, ComputePrecision::Bf16] {
        for config in variants() {
            let vocab_size = config.vocab_size as u32;
            let settings = LearnerSettings { compute, ..LearnerSettings::default() };
            let model = perturbed(config.clone(), 5);
            let mut learner =
                CandleLearner::with_settings(model, AdamW::default(), settings).unwrap();
            let engine = EngineSettings { weights: EngineWeights::Int8, ..Default::default() };
            let policy = learner.policy(engine).unwrap();
            for step in 0..2 {
                let (far, mean) = distance(&policy, &mut learner, vocab_size);
                assert!(far > 0.0 && mean < 0.1, "{:?} {step}: {far} {mean}", config.architecture);
                train(&mut learner, vocab_size);
            }
        }
    }
}

#[test]
fn an_engine_in_tensors_refuses_int8() {
    let settings = EngineSettings {
        weights: EngineWeights::Int8,
        compute: EngineCompute::Tensors,
        ..Default::default()
    };
    let model = perturbed(variants()[0].clone(), 5);
    let refused = CandlePolicy::new(&model, settings).unwrap_err();
    assert!(matches!(&refused, ModelError::Settings(_)), "{refused}");
}
