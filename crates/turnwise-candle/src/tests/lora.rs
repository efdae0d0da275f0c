//! Adapters: results, training and files.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use safetensors::tensor::SafeTensors;
use turnwise_rollout::{Policy, SampleRequest, SessionId, uniform_at};
use turnwise_training::{Learner, LearnerError, Row, Target, Update};
use turnwise_trajectory::{PolicyVersion, Sampling};

use super::block_on;
use super::checkpoint::edit_json;
use super::fixture::{directory, distance, doubles as all_doubles, integers, norm, on_devices};
use super::forward::{BOTH, check_differences, run, tolerance};
use super::tensors::{advance, assert_close, assert_same, request, rows, trainer};
use super::variants::{perturbed, variants};
use crate::layout::ParameterRole;
use crate::published::Published;
use crate::snapshot::Snapshot;
use crate::tape::Keep;
use crate::trainer::LearnerState;
use crate::{
    AdamW, CandleLearner, CandlePolicy, ComputePrecision, Decoder, DecoderConfig, EngineSettings,
    EngineWeights, Kernels, LearnerSettings, LoraSettings, LoraTarget,
};

const ATTENTION: [LoraTarget; 4] =
    [LoraTarget::Query, LoraTarget::Key, LoraTarget::Value, LoraTarget::Output];

/// Returns settings with adapters on all supported matrices.
fn settings(config: &DecoderConfig) -> LoraSettings {
    let has_experts = config.architecture.experts().is_some();
    let targets = if has_experts { ATTENTION.to_vec() } else { vec![LoraTarget::AllLinear] };
    LoraSettings { rank: 3, alpha: 4.5, targets }
}

/// Returns a model with trained adapters.
pub(super) fn adapted(config: &DecoderConfig, seed: u64) -> Decoder {
    learnt(perturbed(config.clone(), seed).with_lora(&settings(config), seed).unwrap(), seed)
}

/// Changes the values that start at zero, which would hide errors.
fn learnt(model: Decoder, seed: u64) -> Decoder {
    let mut values = model.values().unwrap();
    let mut drawn = 0;
    for (parameter, values) in model.parameters().iter().zip(&mut values) {
        for value in values.iter_mut().filter(|_| parameter.spec.role == ParameterRole::AdapterUp) {
            drawn += 1;
            *value = 0.3 * (uniform_at(seed + 2, drawn) as f32 - 0.5);
        }
    }
    model.set_values(values).unwrap();
    model
}

fn small() -> Decoder {
    Decoder::random(DecoderConfig::small(29), 4).unwrap()
}

fn lora() -> LoraSettings {
    LoraSettings { rank: 4, alpha: 8.0, ..LoraSettings::default() }
}

fn ids() -> Vec<u32> {
    (0..40).map(|i| (i * 7) % 23).collect()
}

fn doubles(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

#[test]
fn with_new_adapters_a_model_is_its_base() {
    for config in variants() {
        for kernels in BOTH {
            let base = perturbed(config.clone(), 2).with_kernels(kernels);
            let logits = base.logits(&ids()).unwrap();
            let values = base.values().unwrap();
            let model = base.with_lora(&settings(&config), 9).unwrap();
            assert_eq!(model.logits(&ids()).unwrap(), logits, "{kernels:?}");
            assert!(model.merged().unwrap().values().unwrap() == values);
        }
    }
}

#[test]
fn gradients_of_adapters_are_finite_differences() {
    for config in variants() {
        let config = DecoderConfig { hidden_size: 24, intermediate_size: 40, ..config };
        check_differences(&adapted(&config, 3), &ids()[..19]);
    }
}

#[test]
fn both_kernels_agree_on_adapters_whatever_is_kept() {
    for config in variants() {
        let run = |kernels, keep| run(&adapted(&config, 5).with_kernels(kernels), keep);
        let reference = run(Kernels::Plain, Keep::Activations);
        for (kernels, keep) in [
            (Kernels::Fused, Keep::Activations),
            (Kernels::Fused, Keep::Layers),
            (Kernels::Plain, Keep::Layers),
        ] {
            let ours = run(kernels, keep);
            for (index, (ours, reference)) in ours.iter().zip(&reference).enumerate() {
                let reference = doubles(reference);
                let error = norm(ours.iter().zip(&reference).map(|(a, b)| f64::from(*a) - b));
                let scale = norm(reference.iter().copied());
                let what = format!("{:?} {kernels:?} {keep:?} {index}", config.architecture);
                let most = tolerance(index) * scale;
                assert!(ours.is_empty() || error < most, "{what}: {error} of {scale}");
            }
        }
    }
}

/// Returns the largest difference between two models' scores of the same tokens, in nats.
fn apart(a: &Decoder, b: &Decoder) -> f64 {
    let score = |model: &Decoder| model.score(&[ids()]).unwrap().concat();
    distance(&score(a), &doubles(&score(b)))
}

#[test]
fn merged_and_saved_adapters_are_the_same_model() {
    for config in variants() {
        let model = adapted(&config, 6);
        let base = || perturbed(config.clone(), 6);
        assert!(apart(&model, &base()) > 0.1);
        let error = apart(&model, &adapted(&config, 6).merged().unwrap());
        assert!(error < 1e-5, "{error}");

        let whole = tempfile::tempdir().unwrap();
        model.save(whole.path()).unwrap();
        let whole = Decoder::from_directory(whole.path()).unwrap();
        assert!(apart(&model, &whole) < 1e-5 && whole.lora().is_none());

        let alone = tempfile::tempdir().unwrap();
        model.save_adapter(alone.path()).unwrap();
        let again = base().with_adapter(alone.path()).unwrap();
        assert!(again.values().unwrap() == model.values().unwrap());
        assert_eq!(apart(&again, &model), 0.0);
    }
}

/// An adapter and results that PEFT computed; `make.py` next to them says how.
#[test]
fn an_adapter_of_peft_computes_what_it_computes_there() {
    let adapter = directory("../adapters/qwen3_tied");
    let expected = fs::read(adapter.join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
    let ids = [integers(&expected["ids"])];
    let score = |model: &Decoder| model.score(&ids).unwrap().concat();
    for kernels in BOTH {
        let base = Decoder::from_directory(&directory("qwen3_tied")).unwrap().with_kernels(kernels);
        let theirs = all_doubles(&expected["logprobs_of_base"]);
        assert!(distance(&score(&base), &theirs) < 1e-5);
        let model = base.with_adapter(&adapter).unwrap();
        let theirs = all_doubles(&expected["logprobs"]);
        // PEFT's results are in double precision.
        let error = distance(&score(&model), &theirs);
        assert!(error < 5e-5, "{error}");
        let again = tempfile::tempdir().unwrap();
        model.save_adapter(again.path()).unwrap();
        let [ours, theirs] =
            [again.path(), &adapter].map(|path| fs::read(path.join("adapter_model.safetensors")));
        let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
        let [ours, theirs] = [&ours, &theirs].map(|bytes| {
            let tensors = SafeTensors::deserialize(bytes).unwrap();
            let each = tensors.iter().map(|(name, view)| (name.to_owned(), view.data().to_vec()));
            each.collect::<std::collections::BTreeMap<_, _>>()
        });
        assert!(ours == theirs);
    }
}

/// Any valid settings.
fn any_settings() -> impl Strategy<Value = LoraSettings> {
    let targets = proptest::sample::subsequence(
        vec![
            LoraTarget::Query,
            LoraTarget::Key,
            LoraTarget::Value,
            LoraTarget::Output,
            LoraTarget::Gate,
            LoraTarget::Up,
            LoraTarget::Down,
        ],
        1..=7,
    );
    let each = (1_usize..30, 0.1_f64..20.0, targets);
    each.prop_map(|(rank, alpha, targets)| LoraSettings { rank, alpha, targets })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn adapters_of_any_form_merge_train_what_they_say_and_survive_their_files(
        settings in any_settings(),
        seed in 0_u64..1000,
    ) {
        let config = variants()[0].clone();
        let base = || perturbed(config.clone(), seed);
        let model = learnt(base().with_lora(&settings, seed).unwrap(), seed);
        let trained: Vec<&str> = model.trainable().map(|p| p.spec.name.as_str()).collect();
        prop_assert_eq!(trained.len(), 2 * config.n_layers * settings.targets.len());
        for name in &trained {
            let named = settings.targets.iter().any(|target| name.contains(target.name()));
            prop_assert!(named && name.contains("lora_"), "{}", name);
        }
        let directory = tempfile::tempdir().unwrap();
        model.save_adapter(directory.path()).unwrap();
        let again = base().with_adapter(directory.path()).unwrap();
        prop_assert_eq!(again.lora(), Some(&settings));
        prop_assert!(again.values().unwrap() == model.values().unwrap());
        prop_assert!(apart(&model, &again.merged().unwrap()) < 1e-4);
    }
}

fn row(ids: &[u32]) -> Row {
    let targets = (1..ids.len()).map(|position| Target { position, temperature: 1.0 }).collect();
    Row { ids: ids.to_vec(), targets, ..Row::default() }
}

async fn train(learner: &mut CandleLearner, rows: &[Row], learning_rate: f64) {
    let mut likelihood = |logprobs: &[Vec<f32>]| {
        let count: usize = logprobs.iter().map(Vec::len).sum();
        Ok(logprobs.iter().map(|row| vec![-1.0 / count as f32; row.len()]).collect())
    };
    learner.accumulate(rows, &mut likelihood).await.unwrap();
    let update = Update { learning_rate, max_grad_norm: 1.0 };
    assert!(learner.step(update).await.unwrap().applied);
}

#[test]
fn a_short_sequence_is_learnt_by_heart_and_drawn_with_merged_weights() {
    block_on(async {
        for recompute_layers in [false, true] {
            let settings = LearnerSettings { recompute_layers, ..LearnerSettings::default() };
            // Not a random model: its frozen head would give logits too small for a confident prediction.
            let base = perturbed(DecoderConfig::small(29), 4);
            let model = base.with_lora(&lora(), 1).unwrap();
            let mut learner =
                CandleLearner::with_settings(model, AdamW::default(), settings).unwrap();
            let policy = learner.policy(EngineSettings::default()).unwrap();
            learner.check_gradients().await.unwrap();
            let rows = [row(&[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9])];
            for _ in 0..250 {
                train(&mut learner, &rows, 2e-2).await;
            }
            let logprobs = learner.logprobs(&rows).await.unwrap().concat();
            assert!(logprobs.iter().all(|logprob| *logprob > -0.1), "{logprobs:?}");
            learner.publish().await.unwrap();
            let asked = SampleRequest {
                prompt: rows[0].ids[..4].to_vec(),
                stop: vec![],
                max_tokens: 11,
                sampling: Sampling { temperature: 1.0, ..Sampling::default() },
                seed: 0,
                first_index: 0,
                min_version: PolicyVersion(1),
                session: SessionId(0),
            };
            for (drawn, (id, logprob)) in policy
                .sample(asked)
                .await
                .unwrap()
                .tokens
                .iter()
                .zip(rows[0].ids[4..].iter().zip(&logprobs[3..]))
            {
                assert_eq!(drawn.id, *id);
                assert!((drawn.logprob - logprob).abs() < 1e-5);
            }
        }
    });
}

#[test]
fn frozen_weights_do_not_move_and_take_no_memory_in_training() {
    for kernels in BOTH {
        let model = small().with_lora(&lora(), 1).unwrap().with_kernels(kernels);
        let before = model.values().unwrap();
        let mut trainer =
            LearnerState::new(model, AdamW::default(), LearnerSettings::default()).unwrap();
        let rows = [row(&ids())];
        for _ in 0..3 {
            let (logprobs, pending) = trainer.forward(&rows).unwrap();
            trainer.backward(pending, &vec![-1.0; logprobs[0].len()]).unwrap();
            let parameters = trainer.model().parameters().iter();
            for (parameter, gradient) in parameters.zip(trainer.gradients()) {
                assert_eq!(gradient.capacity() > 0, parameter.spec.role.is_adapter());
            }
            trainer.step(Update { learning_rate: 1e-2, max_grad_norm: 1.0 }).unwrap();
        }
        let after = trainer.model().values().unwrap();
        for (parameter, (before, after)) in
            trainer.model().parameters().iter().zip(before.iter().zip(&after))
        {
            let name = &parameter.spec.name;
            assert_eq!(before != after, parameter.spec.role.is_adapter(), "{name}");
        }
        let directory = tempfile::tempdir().unwrap();
        trainer.save(directory.path()).unwrap();
        let moments = fs::read(directory.path().join("optimizer.safetensors")).unwrap();
        let moments = SafeTensors::deserialize(&moments).unwrap();
        let adapters = moments.names().into_iter().filter(|name| name.contains("lora_")).count();
        // Two moments of two matrices of seven adapters in two layers, and the number of steps.
        assert_eq!((adapters, moments.names().len()), (56, 57));
    }
}

/// While B is zero, the gradient of A is zero too, which is no error. A parameter that is not reached is one.
#[test]
fn a_zero_gradient_of_new_adapters_is_no_error() {
    let model = small().with_lora(&lora(), 1).unwrap();
    let trainer = LearnerState::new(model, AdamW::default(), LearnerSettings::default()).unwrap();
    trainer.check_gradients().unwrap();
    let miswired = trainer.check_gradients_in(|network| {
        let other = network.layers[0].qkv[0].adapter.unwrap();
        network.layers[1].qkv[0].adapter.as_mut().unwrap().up.index = other.up.index;
    });
    let Err(LearnerError::NoGradient { names }) = miswired else { panic!("{miswired:?}") };
    assert_eq!(names, ["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]);
}

#[test]
fn a_saved_learner_goes_on_from_its_base_as_if_nothing_had_happened() {
    for kernels in BOTH {
        block_on(save_and_go_on(kernels, LearnerSettings::default()));
    }
    let compute = ComputePrecision::Bf16;
    let settings = LearnerSettings { compute, ..LearnerSettings::default() };
    block_on(save_and_go_on(Kernels::Fused, settings));
}

async fn save_and_go_on(kernels: Kernels, settings: LearnerSettings) {
    let rows = [row(&[1, 2, 3, 4, 5]), row(&[9, 8, 7])];
    let learner = |base: Decoder, seed| {
        let model = base.with_kernels(kernels).with_lora(&lora(), seed).unwrap();
        CandleLearner::with_settings(model, AdamW::default(), settings).unwrap()
    };
    let mut first = learner(small(), 1);
    first.keep_reference().await.unwrap();
    let start = first.logprobs(&rows).await.unwrap();
    train(&mut first, &rows, 1e-2).await;
    train(&mut first, &rows, 1e-2).await;
    let directory = tempfile::tempdir().unwrap();
    first.save(directory.path()).await.unwrap();
    let now = first.logprobs(&rows).await.unwrap();
    train(&mut first, &rows, 1e-2).await;
    let later = first.logprobs(&rows).await.unwrap();
    assert_eq!(first.reference_logprobs(&rows).await.unwrap(), start);

    let mut second = learner(small(), 2);
    second.load(directory.path(), PolicyVersion(2)).await.unwrap();
    assert_eq!(second.logprobs(&rows).await.unwrap(), now);
    second.keep_reference().await.unwrap();
    train(&mut second, &rows, 1e-2).await;
    assert_eq!(second.logprobs(&rows).await.unwrap(), later);
    assert_eq!(second.reference_logprobs(&rows).await.unwrap(), now);

    // The checkpoint is a complete model, and its adapters are in the format of PEFT.
    let whole = Decoder::from_directory(directory.path()).unwrap().with_kernels(kernels);
    let mut whole = CandleLearner::with_settings(whole, AdamW::default(), settings).unwrap();
    let whole = whole.logprobs(&rows).await.unwrap().concat();
    // In bf16, the sum of a matrix and its adapter is rounded once more.
    let most = if settings.compute == ComputePrecision::F32 { 1e-5 } else { 0.05 };
    assert!(distance(&whole, &doubles(&now.concat())) < most);
    let peft =
        small().with_kernels(kernels).with_adapter(&directory.path().join("adapter")).unwrap();
    let mut peft = CandleLearner::with_settings(peft, AdamW::default(), settings).unwrap();
    assert_eq!(peft.logprobs(&rows).await.unwrap(), now);

    let other = Decoder::random(DecoderConfig::small(29), 5).unwrap();
    let mut other = learner(other, 1);
    let error = other.load(directory.path(), PolicyVersion(2)).await.unwrap_err();
    assert!(reason(&error).contains("it was trained on another base"), "{}", reason(&error));
    let two = LoraSettings { rank: 2, ..lora() };
    let mut two = CandleLearner::new(
        small().with_kernels(kernels).with_lora(&two, 1).unwrap(),
        AdamW::default(),
    )
    .unwrap();
    assert!(two.load(directory.path(), PolicyVersion(2)).await.is_err());
}

fn reason(error: &LearnerError) -> String {
    std::error::Error::source(error).unwrap().to_string()
}

#[test]
fn an_engine_that_takes_the_model_draws_what_one_beside_it_draws() {
    block_on(async {
        let configs = variants();
        for model in configs.iter().flat_map(|config| on_devices(|| adapted(config, 8))) {
            let beside = CandlePolicy::new(&model, EngineSettings::default()).unwrap();
            let instead = CandlePolicy::from_model(model, EngineSettings::default()).unwrap();
            let asked = SampleRequest {
                prompt: ids(),
                stop: vec![],
                max_tokens: 9,
                sampling: Sampling::default(),
                seed: 3,
                first_index: 0,
                min_version: PolicyVersion(0),
                session: SessionId(0),
            };
            let drawn = beside.sample(asked.clone()).await.unwrap();
            assert_eq!(instead.sample(asked).await.unwrap(), drawn);
        }
    });
}

#[test]
fn adapters_that_cannot_be_say_why() {
    let refusal = |settings: LoraSettings, config: &DecoderConfig| {
        let model = Decoder::random(config.clone(), 1).unwrap();
        model.with_lora(&settings, 1).unwrap_err().to_string()
    };
    let plain = DecoderConfig::small(29);
    let cases = [
        (LoraSettings { rank: 0, ..lora() }, "the rank is 0"),
        (LoraSettings { alpha: f64::NAN, ..lora() }, "alpha is NaN"),
        (LoraSettings { alpha: 0.0, ..lora() }, "alpha is 0"),
        (LoraSettings { targets: vec![], ..lora() }, "no targets"),
    ];
    for (settings, expected) in cases {
        let said = refusal(settings, &plain);
        assert!(said.starts_with("cannot adapt the model: ") && said.contains(expected), "{said}");
    }
    for target in [LoraTarget::AllLinear, LoraTarget::Down] {
        let said = refusal(LoraSettings { targets: vec![target], ..lora() }, &variants()[4]);
        assert!(said.contains(target.name()) && said.contains("experts"), "{said}");
    }
    let twice = small().with_lora(&lora(), 1).unwrap().with_lora(&lora(), 1).unwrap_err();
    assert!(twice.to_string().contains("already"), "{twice}");
    let nothing = small().save_adapter(Path::new("nowhere")).unwrap_err();
    assert!(nothing.to_string().contains("no adapters"), "{nothing}");
}

#[test]
fn adapters_whose_tensors_do_not_fit_their_settings_are_refused() {
    let cases = [
        ("bias", "all".into(), "bias"),
        ("target_modules", serde_json::json!(["q_proj"]), "lora_A.weight"),
        ("r", 5.into(), "[5, 64]"),
    ];
    for (key, value, expected) in cases {
        let directory = tempfile::tempdir().unwrap();
        let model = small().with_lora(&lora(), 1).unwrap();
        model.save_adapter(directory.path()).unwrap();
        edit_json(&directory.path().join("adapter_config.json"), |json| json[key] = value);
        let said = small().with_adapter(directory.path()).unwrap_err().to_string();
        assert!(said.contains(expected), "{key}: {said}");
    }
}

/// Other engines get a model with adapters as an ordinary checkpoint.
#[test]
fn the_tensors_of_a_model_with_adapters_are_those_of_the_merged_one() {
    let tensors = |model: &Decoder| {
        let mut shown = Vec::new();
        let visit = |name: &str, shape: &[usize], values: &[f32]| {
            shown.push((name.to_owned(), shape.to_vec(), values.to_vec()));
            Ok::<_, crate::ModelError>(())
        };
        model.for_each_tensor(visit).unwrap();
        shown
    };
    let config = &variants()[3];
    let shown = tensors(&adapted(config, 6));
    assert_eq!(shown, tensors(&adapted(config, 6).merged().unwrap()));
    assert_ne!(shown, tensors(&perturbed(config.clone(), 6)));
}

/// Returns models whose adapters were created on the device, or moved there with the model.
fn adapted_on_devices(config: &DecoderConfig) -> Vec<Decoder> {
    let made_there = on_devices(|| perturbed(config.clone(), 3)).into_iter();
    let made_there =
        made_there.map(|base| learnt(base.with_lora(&settings(config), 3).unwrap(), 3));
    made_there.chain(on_devices(|| adapted(config, 3))).collect()
}

#[test]
fn steps_of_adapters_in_tensors_are_those_in_buffers() {
    for config in variants() {
        let rows = rows(config.vocab_size as u32);
        let settings = LearnerSettings { balance: 0.05, ..LearnerSettings::default() };
        for plain in adapted_on_devices(&config) {
            let (mut fused, mut plain) =
                (trainer(adapted(&config, 3), settings), trainer(plain, settings));
            plain.check_gradients().unwrap();
            for step in 0..4 {
                let norms = [advance(&mut fused, &rows), advance(&mut plain, &rows)];
                assert!((norms[0] / norms[1] - 1.0).abs() < 1e-3, "step {step}: {norms:?}");
                assert_close(&plain, &fused, 1e-3);
            }
        }
    }
}

#[test]
fn a_run_with_adapters_moves_between_buffers_and_tensors() {
    let config = &variants()[3];
    let rows = rows(53);
    let start = |model| trainer(model, LearnerSettings::default());
    let ways = on_devices(|| adapted(config, 3));
    let ways = ways.into_iter().map(|plain| [start(adapted(config, 3)), start(plain)]);
    let back = on_devices(|| adapted(config, 3));
    let back = back.into_iter().map(|plain| [start(plain), start(adapted(config, 3))]);
    for [mut stays, mut goes] in ways.chain(back) {
        for _ in 0..3 {
            advance(&mut stays, &rows);
        }
        let [directory, again] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        stays.save(directory.path()).unwrap();
        goes.load(directory.path(), PolicyVersion(3)).unwrap();
        assert_eq!(stays.model().values().unwrap(), goes.model().values().unwrap());
        goes.save(again.path()).unwrap();
        for file in ["optimizer.safetensors", "adapter/adapter_model.safetensors"] {
            let read = |directory: &tempfile::TempDir| fs::read(directory.path().join(file));
            assert!(read(&directory).unwrap() == read(&again).unwrap(), "{file} is another");
        }
        advance(&mut stays, &rows);
        advance(&mut goes, &rows);
        assert_close(&goes, &stays, 1e-3);
    }
}

#[test]
fn published_tensors_have_adapters_in_their_matrices() {
    for config in variants() {
        let merged = adapted(&config, 3).merged().unwrap().values().unwrap().concat();
        for model in adapted_on_devices(&config) {
            let weights = model.tensor_weights().unwrap();
            assert!(weights.network.linears().all(|linear| linear.adapter.is_none()));
            let published = Published::new(PolicyVersion(0), weights);
            let first = published.newest().unwrap();
            let policy =
                CandlePolicy::start(published.clone(), first, EngineSettings::default()).unwrap();
            let panels = CandlePolicy::new(&model, EngineSettings::default()).unwrap();
            let asked = || request(1, ids(), 12);
            let [ours, theirs] =
                [policy, panels].map(|policy| block_on(policy.sample(asked())).unwrap());
            assert_same(&[ours], &[theirs]);
            let weights = published.newest().unwrap().weights;
            let panels = Arc::clone(&weights).into_panels(EngineWeights::Compute, None).unwrap();
            let Snapshot::Panels(panels) = &*panels else { panic!() };
            assert!(distance(&panels.weights.values().concat(), &doubles(&merged)) < 1e-5);
        }
    }
}

#[test]
fn a_model_on_a_device_shows_and_merges_its_adapters() {
    for config in variants() {
        let merged = adapted(&config, 3).merged().unwrap().values().unwrap().concat();
        for model in adapted_on_devices(&config) {
            let mut seen = Vec::new();
            let see = |name: &str, _: &[usize], values: &[f32]| {
                assert!(!name.contains("lora"), "{name}");
                seen.extend_from_slice(values);
                Ok::<_, crate::ModelError>(())
            };
            model.for_each_tensor(see).unwrap();
            assert_eq!(seen, merged);
            let device = model.device();
            let model = model.merged().unwrap();
            assert_eq!((model.device(), model.values().unwrap().concat()), (device, seen));
        }
    }
}

#[test]
fn adapters_learn_in_bf16_and_are_drawn_with() {
    let config = variants()[3].clone();
    let settings =
        LearnerSettings { compute: ComputePrecision::Bf16, ..LearnerSettings::default() };
    for model in adapted_on_devices(&config) {
        let mut trainer = trainer(model, settings);
        let before = trainer.model().values().unwrap();
        let rows = rows(53);
        let likelihood =
            |trainer: &LearnerState| trainer.logprobs(&rows).unwrap().concat().iter().sum::<f32>();
        let start = likelihood(&trainer);
        for _ in 0..20 {
            let (logprobs, pending) = trainer.forward(&rows).unwrap();
            trainer.backward(pending, &vec![-0.01; logprobs.concat().len()]).unwrap();
            trainer.step(Update { learning_rate: 3e-3, max_grad_norm: 1.0 }).unwrap();
        }
        let end = likelihood(&trainer);
        assert!(end > start + 10.0, "{start} {end}");
        let after = trainer.model().values().unwrap();
        for (parameter, values) in
            trainer.model().parameters().iter().zip(before.iter().zip(&after))
        {
            let name = &parameter.spec.name;
            assert_eq!(values.0 != values.1, parameter.spec.role.is_adapter(), "{name}");
        }

        let weights = trainer.model().tensor_weights().unwrap();
        let published = Published::new(PolicyVersion(0), weights);
        let first = published.newest().unwrap();
        let policy = CandlePolicy::start(published, first, EngineSettings::default()).unwrap();
        let sample = block_on(policy.sample(request(1, ids(), 30))).unwrap();
        let drawn = sample.tokens.iter().map(|token| token.id);
        let all: Vec<u32> = ids().into_iter().chain(drawn).collect();
        let theirs = trainer.logprobs(&[row(&all)]).unwrap().concat();
        let errors = sample.tokens.iter().zip(&theirs[ids().len() - 1..]);
        let mean = errors.map(|(a, b)| (a.logprob - b).abs()).sum::<f32>() / 30.0;
        // There, the sum of a matrix and its adapter is rounded once; here, each part is rounded.
        assert!(mean < 0.06, "{mean}");
    }
}
