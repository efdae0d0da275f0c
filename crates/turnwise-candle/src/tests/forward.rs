use candle_core::Tensor;

use super::fixture::{Fixture, distance, doubles};
use crate::batch::{Batch, Sequence};
use crate::numbers::numbers;
use crate::{Decoder, DecoderConfig, Kernels};

const BOTH: [Kernels; 2] = [Kernels::Plain, Kernels::Fused];

/// The gradient of a mean negative log-likelihood, by parameter.
pub(super) fn gradients(model: &Decoder, ids: &[u32]) -> (f64, Vec<(String, Vec<f32>)>) {
    let batch = Batch::new(&[Sequence::whole(ids)]).unwrap();
    let logprobs = model.forward().logprobs(&model.tracked(), &batch).unwrap();
    let loss = logprobs.mean_all().unwrap().neg().unwrap();
    let store = loss.backward().unwrap();
    let named = model.parameters().iter().map(|parameter| {
        let gradient =
            store.get(&parameter.var).unwrap_or_else(|| panic!("{}", parameter.spec.name));
        (parameter.spec.name.clone(), numbers(&gradient.contiguous().unwrap()).unwrap().to_vec())
    });
    let gradients = named.collect();
    (f64::from(loss.to_scalar::<f32>().unwrap()), gradients)
}

fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(|value| value * value).sum::<f64>().sqrt()
}

#[test]
fn log_probabilities_are_those_of_the_reference() {
    for kernels in BOTH {
        for fixture in Fixture::all() {
            let fixture = fixture.with_kernels(kernels);
            for key in fixture.keys() {
                let ours = fixture.model.score(&[fixture.ids(&key)]).unwrap();
                let theirs =
                    doubles(&fixture.expected["sequences"][&key]["next_token_logprobs_f64"]);
                let distance = distance(&ours[0], &theirs);
                assert!(distance < 2e-5, "{kernels:?} {key}: {distance}");
            }
        }
    }
}

#[test]
fn hidden_states_are_those_of_the_reference() {
    for fixture in Fixture::all() {
        let ids = fixture.ids("len7");
        let layers = fixture.model.config().n_layers;
        let batch = Batch::new(&[Sequence::whole(&ids)]).unwrap();
        let hidden = fixture.model.forward().hidden(&fixture.model.detached(), &batch).unwrap();
        let theirs = fixture.tensor(&format!("hidden_f64.len7.{layers}"));
        let ours = numbers(&hidden).unwrap();
        let distance = distance(&ours, &theirs[..ours.len()]);
        assert!(distance < 2e-5, "{distance}");
    }
}

#[test]
fn a_ragged_batch_is_its_sequences_alone() {
    for kernels in BOTH {
        for fixture in Fixture::all() {
            let fixture = fixture.with_kernels(kernels);
            let model = &fixture.model;
            let ids = ["batch0", "batch1", "batch2", "batch3"].map(|key| fixture.ids(key));
            let together = model.score(&ids).unwrap();
            for (ids, together) in ids.iter().zip(together) {
                let alone: Vec<f64> = model.score(std::slice::from_ref(ids)).unwrap()[0]
                    .iter()
                    .map(|x| f64::from(*x))
                    .collect();
                assert!(distance(&together, &alone) < 1e-5, "{kernels:?}");
            }
        }
    }
}

#[test]
fn gradients_are_those_of_the_reference() {
    for kernels in BOTH {
        for fixture in Fixture::all() {
            let fixture = fixture.with_kernels(kernels);
            let ids = fixture.ids("len64");
            let names = fixture.tensor_names();
            let full = |name: &str| {
                let key = format!("grad_f64.len64.{name}");
                names.contains(&key).then(|| fixture.tensor(&key))
            };
            let expected = &fixture.expected["gradients"]["len64"];
            let (loss, gradients) = gradients(&fixture.model, &ids);
            assert!((loss - expected["loss_f64"].as_f64().unwrap()).abs() < 1e-5);
            let all = gradients.iter().flat_map(|(_, g)| g.iter().map(|x| f64::from(*x)));
            let (ours, theirs) = (norm(all), expected["global_grad_l2_norm_f64"].as_f64().unwrap());
            assert!((ours / theirs - 1.0).abs() < 1e-4, "{ours} {theirs}");
            let mut compared = 0;
            for (name, gradient) in &gradients {
                if let Some(theirs) = full(name) {
                    compared += 1;
                    let scale = norm(theirs.iter().copied());
                    let d = distance(gradient, &theirs) / scale;
                    assert!(d < 1e-4, "{name}: {d}");
                }
            }
            assert!(compared >= 3);
        }
    }
}

/// The last bits of a forward pass hide a missing term; differences of a loss do not.
#[test]
fn gradients_are_finite_differences() {
    let config = DecoderConfig { tie_word_embeddings: false, ..DecoderConfig::small(23) };
    let model = Decoder::random(config, 3).unwrap();
    let ids: Vec<u32> = (0..19).map(|i| (i * 7) % 23).collect();
    let (_, gradients) = gradients(&model, &ids);
    let loss = |model: &Decoder| {
        let scored = model.score(std::slice::from_ref(&ids)).unwrap();
        -scored[0].iter().map(|x| f64::from(*x)).sum::<f64>() / scored[0].len() as f64
    };
    let values = model.values().unwrap();
    for (index, (name, gradient)) in gradients.iter().enumerate() {
        // Along the gradient itself, where the difference is largest.
        let length = norm(gradient.iter().map(|x| f64::from(*x)));
        let step = 3e-3 / length;
        let moved = |sign: f64| {
            let mut values = values.clone();
            for (value, gradient) in values[index].iter_mut().zip(gradient) {
                *value += (sign * step * f64::from(*gradient)) as f32;
            }
            model.set_values(values).unwrap();
            loss(&model)
        };
        let slope = (moved(1.0) - moved(-1.0)) / 6e-3;
        assert!((slope / length - 1.0).abs() < 1e-2, "{name}: {slope} {length}");
        model.set_values(values.clone()).unwrap();
    }
}

#[test]
fn both_kernels_agree_on_odd_sizes() {
    let config = DecoderConfig {
        hidden_size: 21,
        intermediate_size: 37,
        n_heads: 6,
        n_kv_heads: 2,
        head_dim: 10,
        n_layers: 3,
        ..DecoderConfig::small(53)
    };
    let run = |kernels| {
        let model = Decoder::random(config, 5).unwrap().with_kernels(kernels);
        let rows: Vec<Vec<u32>> = [1, 2, 70, 131, 33]
            .map(|length| (0..length).map(|i| (i * i + length) % 53).collect())
            .to_vec();
        let sequences: Vec<Sequence> = rows
            .iter()
            .map(|ids| Sequence {
                ids,
                targets: (1..ids.len()).step_by(2).map(|i| (i, 0.5 + i as f32 * 0.01)).collect(),
            })
            .collect();
        let batch = Batch::new(&sequences).unwrap();
        let logprobs = model.forward().logprobs(&model.tracked(), &batch).unwrap();
        let weights: Vec<f32> = (0..batch.n_targets()).map(|i| (i as f32).sin()).collect();
        let weights = Tensor::from_vec(weights, batch.n_targets(), &candle_core::Device::Cpu);
        let store = (&logprobs * weights.unwrap()).unwrap().sum_all().unwrap().backward().unwrap();
        let mut all = vec![numbers(&logprobs).unwrap().to_vec()];
        for parameter in model.parameters() {
            let gradient = store.get(&parameter.var).unwrap().contiguous().unwrap();
            all.push(numbers(&gradient).unwrap().to_vec());
        }
        all
    };
    for (plain, fused) in run(Kernels::Plain).iter().zip(run(Kernels::Fused)) {
        let plain: Vec<f64> = plain.iter().map(|x| f64::from(*x)).collect();
        let scale = norm(plain.iter().copied());
        assert!(distance(&fused, &plain) / scale < 1e-5);
    }
}
