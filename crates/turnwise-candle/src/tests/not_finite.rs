//! Numbers that are NaN or infinite are refused where they arise, with the tensor that caused them.

use std::error::Error;
use std::fs;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::Dtype;
use turnwise_rollout::{Policy, PolicyError};
use turnwise_training::{Learner, LearnerError, Row, Target, Update};
use turnwise_trajectory::PolicyVersion;

use super::block_on;
use super::checkpoint::{copy, tensors, write};
use super::engine::request;
use super::fixture::{case, on_devices};
use super::refusals::failure;
use crate::checkpoint::Precision;
use crate::{
    AdamW, CandleLearner, CandlePolicy, Decoder, DecoderConfig, EngineCompute, EngineSettings,
    Kernels, LoraSettings, ModelError,
};

const BROKEN: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

fn small() -> Decoder {
    Decoder::random(DecoderConfig::small(29), 4).unwrap()
}

/// Returns a model with one changed number in a parameter.
fn with(name: &str, place: usize, value: f32) -> Decoder {
    changed(small(), name, |values| values[place] = value)
}

fn changed(model: Decoder, name: &str, change: impl FnOnce(&mut [f32])) -> Decoder {
    let mut values = model.values().unwrap();
    let index = model.parameters().iter().position(|p| p.spec.name == name).unwrap();
    change(&mut values[index]);
    model.set_values(values).unwrap();
    model
}

fn rows() -> [Row; 1] {
    let targets = (1..6).map(|position| Target { position, temperature: 1.0 }).collect();
    [Row { ids: vec![1, 2, 3, 4, 5, 6], targets, ..Row::default() }]
}

#[expect(clippy::unnecessary_wraps, reason = "what a learner calls")]
fn likelihood(logprobs: &[Vec<f32>]) -> Result<Vec<Vec<f32>>, Box<dyn Error + Send + Sync>> {
    Ok(logprobs.iter().map(|row| vec![-1.0; row.len()]).collect())
}

fn reason(error: ModelError) -> String {
    let ModelError::NotFinite { action, reason } = error else { panic!("{error}") };
    format!("{action}: {reason}")
}

fn learner_reason(error: LearnerError) -> String {
    let LearnerError::NotFinite { action, reason } = error else { panic!("{error:?}") };
    format!("{action}: {reason}")
}

#[test]
fn a_checkpoint_from_the_field_with_nan_is_refused_with_tensor_and_place() {
    let said = reason(Decoder::from_directory(&case("not_a_number").join("model")).unwrap_err());
    assert!(said.contains("load the weights in ") && said.contains("is NaN at ["), "{said}");
}

// Field 7: NaN and infinite numbers are refused in every type of every file.
#[test]
fn a_number_that_is_not_finite_is_refused_in_every_type_of_every_file() {
    for (model, name, place) in [
        ("qwen3_tied", "model.norm.weight", vec![47]),
        ("qwen3_untied", "lm_head.weight", vec![3, 1]),
        ("qwen2", "model.layers.1.self_attn.k_proj.bias", vec![0]),
        ("qwen3_moe_norm", "model.layers.1.mlp.experts.2.up_proj.weight", vec![5, 7]),
        ("llama", "model.layers.0.mlp.down_proj.weight", vec![63, 0]),
    ] {
        for value in BROKEN {
            for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
                let directory = copy(model);
                let mut all = tensors(directory.path());
                let (shape, stored, bytes) = all.get_mut(name).unwrap();
                let n: usize = shape.iter().product();
                let index = place.iter().zip(&*shape).fold(0, |index, (at, n)| index * n + at);
                let mut values = vec![0.5; n];
                values[index] = value;
                *stored = dtype;
                *bytes = Precision::of(dtype).unwrap().encode(&values);
                // An index of shards may be left from before.
                let _ = fs::remove_file(directory.path().join("model.safetensors.index.json"));
                write(directory.path(), &all);
                let said = failure(directory.path());
                let expected = format!("{name} is {value} at {place:?} and must be finite");
                assert!(said.contains(&expected), "{said}");
            }
        }
    }
}

#[test]
fn no_number_that_is_computed_with_a_broken_weight_is_reported() {
    for kernels in [Kernels::Fused, Kernels::Plain] {
        for value in BROKEN {
            let model = with("model.layers.1.mlp.up_proj.weight", 70, value).with_kernels(kernels);
            let name = format!("model.layers.1.mlp.up_proj.weight is {value} at [1, 6]");
            let ids = vec![1, 2, 3, 4];
            let errors = [
                model.score(std::slice::from_ref(&ids)).unwrap_err(),
                model.entropies(std::slice::from_ref(&ids)).unwrap_err(),
                model.logits(&ids).unwrap_err(),
                model.likelihood_gradient(&ids).unwrap_err(),
            ];
            for said in errors.map(reason) {
                assert!(said.contains(&name), "{said}");
            }
        }
    }
}

#[test]
fn a_learner_trains_on_no_number_that_is_not_finite() {
    block_on(async {
        for kernels in [Kernels::Fused, Kernels::Plain] {
            let model = with("model.norm.weight", 5, f32::NAN).with_kernels(kernels);
            let mut learner = CandleLearner::new(model, AdamW::default()).unwrap();
            learner.keep_reference().await.unwrap();
            let directory = tempfile::tempdir().unwrap();
            let errors = [
                learner.logprobs(&rows()).await.unwrap_err(),
                learner.reference_logprobs(&rows()).await.unwrap_err(),
                learner.accumulate(&rows(), &mut likelihood).await.unwrap_err(),
                learner.save(directory.path()).await.unwrap_err(),
            ];
            for said in errors.map(learner_reason) {
                assert!(said.contains("model.norm.weight is NaN at [5]"), "{said}");
            }
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is written");
        }
    });
}

#[test]
fn an_engine_samples_nothing_from_logits_that_are_not_finite() {
    block_on(async {
        let broken = with("model.layers.0.self_attn.v_proj.weight", 64, f32::NAN);
        // Finite weights can give logits beyond f32.
        let huge = changed(small(), "model.embed_tokens.weight", |rows| {
            for x in rows {
                *x *= 1e6;
            }
        });
        let huge = changed(huge, "model.norm.weight", |gains| gains.fill(1e38));
        for (model, expected) in [
            (broken, "model.layers.0.self_attn.v_proj.weight is NaN at [1, 0]"),
            (
                huge,
                "every weight is finite, but results are not; the largest weight is 1e38, in model.norm.weight",
            ),
        ] {
            for compute in [EngineCompute::Buffers, EngineCompute::Tensors] {
                let settings = EngineSettings { compute, ..EngineSettings::default() };
                let policy = CandlePolicy::new(&model, settings).unwrap();
                let (one, two) = tokio::join!(
                    policy.sample(request(0, vec![1, 2, 3], 4)),
                    policy.sample(request(1, vec![4, 5], 4)),
                );
                for answer in [one, two] {
                    let Err(PolicyError::NotFinite(said)) = answer else { panic!("{answer:?}") };
                    assert!(said.contains(expected), "{said}");
                }
            }
        }
    });
}

#[test]
fn a_step_that_breaks_a_weight_is_an_error_and_never_a_checkpoint() {
    block_on(async {
        for model in on_devices(small).into_iter().chain([small(), adapted()]) {
            let mut learner = CandleLearner::new(model, AdamW::default()).unwrap();
            learner.accumulate(&rows(), &mut likelihood).await.unwrap();
            // The learning rate overflows every weight.
            let update = Update { learning_rate: 3e38, max_grad_norm: 1.0 };
            let mut said = None;
            for _ in 0..3 {
                match learner.step(update).await {
                    Ok(_) => learner
                        .accumulate(&rows(), &mut likelihood)
                        .await
                        .map_or_else(|error| said = Some(learner_reason(error)), |()| ()),
                    Err(error) => said = Some(learner_reason(error)),
                }
                if said.is_some() {
                    break;
                }
            }
            let said = said.expect("the weights broke");
            assert!(said.contains("model."), "{said}");
        }
    });
}

fn adapted() -> Decoder {
    small().with_lora(&LoraSettings { rank: 2, ..LoraSettings::default() }, 3).unwrap()
}

#[test]
fn the_step_in_which_a_weight_becomes_infinite_says_so() {
    block_on(async {
        for model in on_devices(small).into_iter().chain([small()]) {
            let model =
                changed(model, "model.layers.0.mlp.up_proj.weight", |values| values[3] = 3e38);
            let mut learner = CandleLearner::new(model, AdamW::default()).unwrap();
            // The decayed weight overflows f32: 3e38 - 1000 * 0.01 * 3e38.
            let update = Update { learning_rate: 1000.0, max_grad_norm: 1.0 };
            let said = learner_reason(learner.step(update).await.unwrap_err());
            let expected = "take a step with the learning rate 1e3: model.layers.0.mlp.up_proj.weight is -inf at [0, 3]";
            assert!(said.contains(expected), "{said}");
            let directory = tempfile::tempdir().unwrap();
            let said = learner_reason(learner.save(directory.path()).await.unwrap_err());
            assert!(said.contains("model.layers.0.mlp.up_proj.weight is -inf"), "{said}");
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        }
    });
}

#[test]
fn a_moment_that_overflows_is_an_error() {
    block_on(async {
        let mut learner = CandleLearner::new(small(), AdamW::default()).unwrap();
        let mut huge =
            |logprobs: &[Vec<f32>]| -> Result<Vec<Vec<f32>>, Box<dyn Error + Send + Sync>> {
                Ok(logprobs.iter().map(|row| vec![1e25; row.len()]).collect())
            };
        learner.accumulate(&rows(), &mut huge).await.unwrap();
        let update = Update { learning_rate: 1e-5, max_grad_norm: f64::INFINITY };
        let said = learner_reason(learner.step(update).await.unwrap_err());
        assert!(said.contains("the second moment of model."), "{said}");
    });
}

#[test]
fn a_broken_optimiser_state_is_not_loaded() {
    block_on(async {
        for (value, expected) in [(f32::NAN, "is NaN at [2]"), (-1.0, "has negative numbers")] {
            let directory = tempfile::tempdir().unwrap();
            let mut learner = CandleLearner::new(small(), AdamW::default()).unwrap();
            learner.step(Update { learning_rate: 0.0, max_grad_norm: 1.0 }).await.unwrap();
            learner.save(directory.path()).await.unwrap();
            edit_tensor(
                &directory.path().join("optimizer.safetensors"),
                "second.model.norm.weight",
                2,
                value,
            );
            let error = learner.load(directory.path(), PolicyVersion(1)).await.unwrap_err();
            let said = format!("{error} {:?}", error.source());
            assert!(said.contains("second.model.norm.weight") && said.contains(expected), "{said}");
        }
    });
}

/// Changes a number of an F32 tensor in a file.
fn edit_tensor(path: &Path, name: &str, place: usize, value: f32) {
    let mut bytes = fs::read(path).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let start = 8 + header + metadata.info(name).unwrap().data_offsets.0 + 4 * place;
    bytes[start..start + 4].copy_from_slice(&value.to_le_bytes());
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_broken_adapter_is_not_loaded() {
    let directory = tempfile::tempdir().unwrap();
    adapted().save_adapter(directory.path()).unwrap();
    let name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight";
    edit_tensor(&directory.path().join("adapter_model.safetensors"), name, 1, f32::INFINITY);
    let said = reason(small().with_adapter(directory.path()).unwrap_err());
    assert!(said.contains(&format!("{name} is inf at [0, 1]")), "{said}");
}

#[test]
fn adapters_that_overflow_are_neither_merged_nor_saved() {
    let of = |model: Decoder, name: &str| changed(model, name, |values| values.fill(1e30));
    let module = "base_model.model.model.layers.1.mlp.up_proj";
    let model = of(adapted(), &format!("{module}.lora_A.weight"));
    let model = of(model, &format!("{module}.lora_B.weight"));
    let directory = tempfile::tempdir().unwrap();
    let said = reason(model.save(directory.path()).unwrap_err());
    assert!(said.contains("model.layers.1.mlp.up_proj.weight is inf at [0, 0]"), "{said}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    let visited = model.for_each_tensor(|_, _, _| Ok::<(), ModelError>(()));
    assert!(reason(visited.unwrap_err()).contains("model.layers.1.mlp.up_proj.weight is inf"));
    assert!(
        reason(model.merged().unwrap_err()).contains("model.layers.1.mlp.up_proj.weight is inf")
    );
}

#[test]
fn a_weight_that_a_half_cannot_hold_is_not_rounded_to_infinity() {
    let directory = copy("qwen3_tied");
    let mut all = tensors(directory.path());
    for (_, dtype, bytes) in all.values_mut() {
        let values: Vec<f32> = bytes
            .chunks_exact(if *dtype == Dtype::F32 { 4 } else { 2 })
            .map(|b| match dtype {
                Dtype::F32 => f32::from_le_bytes(b.try_into().unwrap()),
                Dtype::BF16 => bf16::from_le_bytes(b.try_into().unwrap()).to_f32(),
                _ => f16::from_le_bytes(b.try_into().unwrap()).to_f32(),
            })
            .collect();
        (*dtype, *bytes) = (Dtype::F16, Precision::Half.encode(&values));
    }
    write(directory.path(), &all);
    let model = Decoder::from_directory(directory.path()).unwrap();
    let model = changed(model, "model.norm.weight", |gains| gains[1] = 70_000.0);
    let target = tempfile::tempdir().unwrap();
    let said = reason(model.save(target.path()).unwrap_err());
    assert!(said.contains("model.norm.weight has 7e4") && said.contains("F16"), "{said}");
    model.save_exactly(target.path(), &turnwise_rollout::Meter::default()).unwrap();
}
