//! Frozen weights beside adapters, which a learner and its engines share.

use std::fs;
use std::sync::Arc;

use turnwise_rollout::Meter;

use super::lora::adapted;
use super::rounded::{distance, train};
use super::variants::variants;
use crate::snapshot::{PackedPolicy, Snapshot};
use crate::{
    AdamW, CandleLearner, ComputePrecision, Decoder, EngineSettings, EngineWeights, LearnerSettings,
};

fn packed(model: Decoder, precision: ComputePrecision) -> Decoder {
    model.with_precision(precision).with_packed_base().unwrap()
}

#[test]
fn packed_weights_are_the_model_s_own() {
    for config in variants() {
        let model = adapted(&config, 3);
        let (values, scored) =
            (model.values().unwrap(), model.score(&[vec![3, 1, 4, 1, 5]]).unwrap());
        let directories = [(); 2].map(|()| tempfile::tempdir().unwrap());
        model.save_exactly(directories[0].path(), &Meter::default()).unwrap();
        let model = packed(model, ComputePrecision::F32);
        let is_packed = model.parameters().iter().filter(|parameter| parameter.own().is_none());
        assert!(is_packed.count() >= 4 * config.n_layers, "{:?}", config.architecture);
        assert_eq!(model.values().unwrap(), values);
        assert_eq!(model.score(&[vec![3, 1, 4, 1, 5]]).unwrap(), scored);
        model.save_exactly(directories[1].path(), &Meter::default()).unwrap();
        let files = directories
            .each_ref()
            .map(|directory| fs::read(directory.path().join("model.safetensors")).unwrap());
        assert!(files[0] == files[1], "{:?}", config.architecture);
    }
}

/// A publication holds the adapters alone: the base is that of the learner.
#[test]
fn publications_share_the_learner_s_base() {
    let model = packed(adapted(&variants()[3], 3), ComputePrecision::Bf16);
    let snapshot = || Arc::new(model.snapshot(EngineWeights::Int8).unwrap());
    let (first, second) = (snapshot(), snapshot());
    let base = |snapshot: &Snapshot| match snapshot {
        Snapshot::Panels(PackedPolicy { weights, .. }) => Arc::as_ptr(weights),
        Snapshot::Tensors(_) => panic!("a learner on the CPU packs its base"),
    };
    assert_eq!(base(&first), base(&second));
    // An engine in another format converts the base once.
    let converted = first.into_panels(EngineWeights::Int8, None).unwrap();
    let again = second.clone().into_panels(EngineWeights::Int8, Some(&converted)).unwrap();
    assert_ne!(base(&second), base(&converted));
    assert_eq!(base(&converted), base(&again));
}

/// Adapters are never rounded together with their matrix, so that the engine follows steps that are small beside it.
#[test]
fn an_engine_samples_from_the_adapters_that_were_published_last() {
    for config in variants() {
        for (compute, weights, most) in [
            (ComputePrecision::F32, EngineWeights::Compute, 2e-4),
            (ComputePrecision::Bf16, EngineWeights::Compute, 2e-2),
            (ComputePrecision::F32, EngineWeights::Int8, 0.1),
        ] {
            let settings = LearnerSettings { compute, ..LearnerSettings::default() };
            let mut learner =
                CandleLearner::with_settings(adapted(&config, 3), AdamW::default(), settings)
                    .unwrap();
            let engine = EngineSettings { weights, ..EngineSettings::default() };
            let policy = learner.policy(engine).unwrap();
            for step in 0..2 {
                let (_, mean) = distance(&policy, &mut learner, config.vocab_size as u32);
                assert!(
                    mean < most,
                    "{:?} {compute:?} {weights:?} {step}: {mean}",
                    config.architecture
                );
                train(&mut learner, config.vocab_size as u32);
            }
        }
    }
}
