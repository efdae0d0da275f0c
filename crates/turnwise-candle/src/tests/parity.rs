//! Reference models, compared with transformers and with a plain forward pass in double precision.

use candle_core::{D, Tensor};
use candle_nn::ops::softmax;
use serde_json::Value;

use super::fixture::{
    Fixture, NAMES, directory, distance, doubles, integers, norm, on_devices, relative,
};
use crate::batch::{PackedBatch, ScoredSequence};
use crate::{Decoder, Kernels, LikelihoodGradient};

/// Runs a comparison for every model, with both kernels and on every device.
fn compare(what: &str, limit: f64, error: impl Fn(&Fixture) -> f64) {
    for name in NAMES {
        let fused = Fixture::load(name).model.with_kernels(Kernels::Fused);
        for model in on_devices(|| Fixture::load(name).model).into_iter().chain([fused]) {
            let (kernels, device) = (model.kernels(), model.device());
            let error = error(&Fixture { model, ..Fixture::load(name) });
            assert!(error < limit, "{what} of {name} with {kernels:?} on {device}: {error}");
        }
    }
}

fn worst(errors: impl IntoIterator<Item = f64>) -> f64 {
    errors.into_iter().fold(0.0, |a, b| if b.is_nan() { f64::NAN } else { a.max(b) })
}

#[test]
fn logits_are_those_of_the_reference() {
    compare("logits, relative", 1e-5, |fixture| {
        worst(fixture.keys().iter().map(|key| {
            let logits = fixture.model.logits(&fixture.ids(key)).unwrap();
            let rows = integers(&fixture.expected["sequences"][key]["logit_positions"]);
            let ours: Vec<f32> =
                rows.iter().flat_map(|row| logits[*row as usize].clone()).collect();
            relative(&ours, &fixture.tensor(&format!("logits_f64.{key}")))
        }))
    });
}

#[test]
fn log_probabilities_are_those_of_the_reference() {
    let errors = |measure: fn(&[f32], &[f64]) -> f64| {
        move |fixture: &Fixture| {
            let keys = fixture.keys().into_iter().filter(|key| fixture.ids(key).len() > 1);
            worst(keys.map(|key| {
                let ours = fixture.model.score(&[fixture.ids(&key)]).unwrap();
                let theirs = &fixture.expected["sequences"][&key]["next_token_logprobs_f64"];
                measure(&ours[0], &doubles(theirs))
            }))
        }
    };
    compare("log-probabilities, relative", 1e-5, errors(relative));
    compare("log-probabilities, nats", 3e-5, errors(distance));
}

#[test]
fn hidden_states_are_those_of_the_reference() {
    compare("hidden states, relative", 1e-5, |fixture| {
        let ids = fixture.ids("len7");
        let layers = fixture.model.config().n_layers;
        let ours = fixture.model.hidden(PackedBatch::new(&[ScoredSequence::whole(&ids)]));
        let theirs = fixture.tensor(&format!("hidden_f64.len7.{layers}"));
        relative(&ours, &theirs[..ours.len()])
    });
}

#[test]
fn gradients_are_those_of_the_reference() {
    compare("gradients, relative", 1e-4, |fixture| {
        let expected = &fixture.expected["gradients"]["len64"];
        let LikelihoodGradient { loss, gradient: named } =
            fixture.model.likelihood_gradient(&fixture.ids("len64")).unwrap().unwrap();
        assert!((f64::from(loss) - expected["loss_f64"].as_f64().unwrap()).abs() < 1e-5);
        let all = named.values().flat_map(|gradient| gradient.iter().map(|x| f64::from(*x)));
        let theirs = expected["global_grad_l2_norm_f64"].as_f64().unwrap();
        assert!((norm(all) / theirs - 1.0).abs() < 1e-5);
        assert_eq!(named.len(), super::checkpoint::tensors(&directory(&fixture.name)).len());

        let parameters = expected["parameters"].as_object().unwrap();
        worst(parameters.iter().map(|(name, expected)| {
            let ours = &named[name];
            let theirs = if expected["full"] == true {
                fixture.tensor(&format!("grad_f64.len64.{name}"))
            } else {
                doubles(&expected["values_f64"])
            };
            let offset = expected["offset"].as_u64().unwrap_or(0) as usize;
            // A part is compared relative to the whole, because its own numbers may be tiny.
            let length = expected["l2_norm_f64"].as_f64().unwrap();
            let share = (theirs.len() as f64 / ours.len() as f64).sqrt();
            let part = &ours[offset..offset + theirs.len()];
            let differences = part.iter().zip(&theirs).map(|(a, b)| f64::from(*a) - b);
            norm(differences) / (length * share)
        }))
    });
}

#[test]
fn experts_are_chosen_and_weighted_as_in_the_reference() {
    for name in ["qwen3_moe_norm", "qwen3_moe_nonorm"] {
        let fixture = Fixture::load(name);
        let sequences = fixture.expected["sequences"].as_object().unwrap();
        let routed = sequences.iter().filter(|(_, sequence)| sequence["router"].is_array());
        let mut n_compared = 0;
        for (key, sequence) in routed {
            let ids = fixture.ids(key);
            let layers = fixture.model.routed(PackedBatch::inputs_only(&[&ids]));
            let expected = sequence["router"].as_array().unwrap();
            assert_eq!(layers.len(), expected.len());
            for (layer, expected) in layers.iter().zip(expected) {
                let flat = |key: &str| {
                    expected[key]
                        .as_array()
                        .unwrap()
                        .iter()
                        .flat_map(|row| row.as_array().unwrap().clone())
                };
                let experts: Vec<u32> = integers(&Value::Array(flat("experts").collect()));
                assert_eq!(layer.routing.chosen, experts, "{name} {key}");
                let weights: Vec<f64> = doubles(&Value::Array(flat("weights_f64").collect()));
                assert!(distance(&layer.weights, &weights) < 1e-5, "{name} {key}");
                n_compared += 1;
            }
        }
        assert!(n_compared > 0);
    }
}

/// The expected values are those of `load_balancing_loss_func` of transformers 5.19 on the same tokens.
#[test]
fn the_loss_of_uneven_experts_is_that_of_transformers() {
    let expected = [
        ("qwen3_moe_nonorm", "len7", 2.610_035_2),
        ("qwen3_moe_nonorm", "len64", 2.342_136),
        ("qwen3_moe_norm", "len7", 2.334_482_7),
        ("qwen3_moe_norm", "len64", 2.075_844_5),
    ];
    for (name, key, expected) in expected {
        let fixture = Fixture::load(name);
        let ours = fixture.model.balance(&[fixture.ids(key)]).unwrap().unwrap();
        assert!((ours - expected).abs() < 2e-6, "{name} {key}: {ours} {expected}");
    }
    assert_eq!(Fixture::load("llama").model.balance(&[vec![1, 2]]).unwrap(), None);
}

#[test]
fn both_forms_of_a_configuration_are_the_same_model() {
    for name in NAMES {
        let model = Decoder::from_directory(&directory(name)).unwrap();
        let legacy = super::checkpoint::copy(name);
        let path = legacy.path().join("config.json");
        std::fs::rename(legacy.path().join("config_legacy.json"), path).unwrap();
        let legacy = Decoder::from_directory(legacy.path()).unwrap();
        assert_eq!(legacy.config(), model.config());
        assert_eq!(legacy.logits(&[1, 2, 3]).unwrap(), model.logits(&[1, 2, 3]).unwrap());
    }
}

#[test]
fn log_probabilities_are_those_of_the_logits() {
    let model = Fixture::load("qwen2").model;
    let ids = [3, 1, 4, 1, 5];
    let logits = model.logits(&ids).unwrap();
    assert_eq!(logits.len(), ids.len());
    let scored = model.score(&[ids.to_vec()]).unwrap().concat();
    for (row, (next, logprob)) in logits.iter().zip(ids[1..].iter().zip(scored)) {
        let row = Tensor::from_slice(row, row.len(), &candle_core::Device::Cpu).unwrap();
        let probability = softmax(&row, D::Minus1).unwrap().to_vec1::<f32>().unwrap();
        assert!((probability[*next as usize].ln() - logprob).abs() < 1e-4);
    }
    assert!(model.logits(&[]).unwrap().is_empty());
    assert_eq!(model.likelihood_gradient(&[1]).unwrap(), None);
    assert!(model.logits(&[256]).is_err());
}
