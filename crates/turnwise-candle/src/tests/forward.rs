use std::collections::BTreeMap;
use std::sync::Arc;

use turnwise_kernels::matrix::{Accuracy, packing_pays};

use super::fixture::{Fixture, distance, norm};
use super::variants::{perturbed, variants};
use crate::batch::{PackedBatch, ScoredSequence};
use crate::tape::{Keep, Loss};
use crate::{Decoder, DecoderConfig, Kernels};

pub(super) const BOTH: [Kernels; 2] = [Kernels::Plain, Kernels::Fused];

/// Returns a mean negative log-likelihood and its gradient, by parameter.
pub(super) fn gradients(model: &Decoder, ids: &[u32]) -> (f64, Vec<Vec<f32>>) {
    let batch = Arc::new(PackedBatch::new(&[ScoredSequence::whole(ids)]));
    let pass = model.pass(batch.clone(), Keep::Activations).unwrap();
    let logprobs = batch.split(&pass.logprobs().unwrap()).concat();
    let loss = -logprobs.iter().map(|x| f64::from(*x)).sum::<f64>() / logprobs.len() as f64;
    let each = vec![-1.0 / logprobs.len() as f32; logprobs.len()];
    let dlogprobs = batch.join(&[&each]);
    let mut gradients = model.zero_gradients();
    let above = Loss { dlogprobs: &dlogprobs, ..Loss::default() };
    model.backward(pass, above, &mut gradients).unwrap();
    (loss, gradients)
}

/// Converts values of the parameters to those of a file's tensors.
pub(super) fn tensors(model: &Decoder, values: &[Vec<f32>]) -> Vec<(String, Vec<f32>)> {
    let parameters = model.parameters().iter().zip(values);
    let tensors = parameters.flat_map(|(parameter, values)| {
        let size = parameter.spec.len() / parameter.spec.n_tensors();
        parameter.spec.tensor_names().zip(values.chunks(size).map(<[f32]>::to_vec))
    });
    tensors.collect()
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

/// Rounding of a forward pass can hide a missing term; finite differences of a loss cannot.
#[test]
fn gradients_are_finite_differences() {
    for config in variants() {
        let config = DecoderConfig { hidden_size: 24, intermediate_size: 40, ..config };
        let model = perturbed(config, 3);
        let ids: Vec<u32> = (0..19).map(|i| (i * 7) % 23).collect();
        check_differences(&model, &ids);
    }
}

/// Compares the gradient of every trainable parameter with a finite difference, at its largest entry.
pub(super) fn check_differences(model: &Decoder, ids: &[u32]) {
    let (_, gradients) = gradients(model, ids);
    let loss = || {
        let scored = model.score(&[ids.to_vec()]).unwrap();
        -scored[0].iter().map(|x| f64::from(*x)).sum::<f64>() / scored[0].len() as f64
    };
    let values = model.values().unwrap();
    let trained = model.parameters().iter().zip(&gradients).enumerate();
    for (index, (parameter, gradient)) in trained.filter(|(_, (p, _))| p.trainable) {
        let length = norm(gradient.iter().map(|x| f64::from(*x)));
        let step = 1e-3;
        let moved = |sign: f64| {
            let mut values = values.clone();
            for (value, gradient) in values[index].iter_mut().zip(gradient) {
                *value += (sign * step / length * f64::from(*gradient)) as f32;
            }
            model.set_values(values).unwrap();
            loss()
        };
        let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
        let name = &parameter.spec.name;
        let error = (slope - length).abs();
        assert!(error < 1e-2 * length + 3e-4, "{name}: {slope} {length}");
        model.set_values(values.clone()).unwrap();
    }
}

#[test]
fn both_kernels_agree_on_odd_sizes_whatever_is_kept() {
    for config in variants() {
        let run = |kernels, keep| run(&perturbed(config.clone(), 5).with_kernels(kernels), keep);
        let reference = run(Kernels::Plain, Keep::Activations);
        for (kernels, keep) in [
            (Kernels::Fused, Keep::Activations),
            (Kernels::Fused, Keep::Layers),
            (Kernels::Plain, Keep::Layers),
        ] {
            let ours = run(kernels, keep);
            assert_eq!(ours.len(), reference.len());
            for (index, (ours, reference)) in ours.iter().zip(&reference).enumerate() {
                let reference: Vec<f64> = reference.iter().map(|x| f64::from(*x)).collect();
                let error = norm(ours.iter().zip(&reference).map(|(a, b)| f64::from(*a) - b));
                let scale = norm(reference.iter().copied());
                let what = format!("{:?} {kernels:?} {keep:?} {index}", config.architecture);
                assert!(error < tolerance(index) * scale, "{what}: {error} of {scale}");
            }
        }
    }
}

/// Returns the tolerance for the results of [`run`]: a matrix unit computes gradients to three parts in 2^16;
/// log-probabilities and entropies, which come first, have the precision of f32.
pub(super) fn tolerance(index: usize) -> f64 {
    if index >= 2 && packing_pays(64, 64, 64, Accuracy::Full) { 5e-5 } else { 1e-5 }
}

/// Rows are long enough for every product to use the matrix unit, if there is one; they share a prefix.
#[test]
fn both_kernels_agree_on_long_rows() {
    let small = DecoderConfig::small(600);
    let config = DecoderConfig { max_positions: 512, ..small };
    let row = |seed: u32| -> Vec<u32> {
        (0..300).map(|i| if i < 170 { i % 600 } else { (i * seed) % 600 }).collect()
    };
    let rows = [row(7), row(11), row(13)];
    let sequences: Vec<ScoredSequence<'_>> =
        rows.iter().map(|ids| ScoredSequence::whole(ids)).collect();
    let run = |kernels| {
        let model = perturbed(config.clone(), 3).with_kernels(kernels);
        let batch = Arc::new(PackedBatch::new(&sequences));
        let pass = model.pass(batch.clone(), Keep::Activations).unwrap();
        let dlogprobs: Vec<f32> = (0..batch.n_targets()).map(|i| (i as f32).sin()).collect();
        let mut all = vec![pass.logprobs().unwrap()];
        let mut gradients = model.zero_gradients();
        let loss = Loss { dlogprobs: &dlogprobs, ..Loss::default() };
        model.backward(pass, loss, &mut gradients).unwrap();
        all.extend(gradients);
        all
    };
    let (ours, reference) = (run(Kernels::Fused), run(Kernels::Plain));
    for (index, (ours, reference)) in ours.iter().zip(&reference).enumerate() {
        let error = norm(ours.iter().zip(reference).map(|(a, b)| f64::from(a - b)));
        let scale = norm(reference.iter().map(|x| f64::from(*x)));
        // The first results are log-probabilities, which have the precision of f32.
        let most = if index == 0 { 2e-6 } else { tolerance(2) };
        assert!(error < most * scale, "{index}: {error} of {scale}");
    }
}

/// Returns log-probabilities of rows of different lengths at several temperatures, entropies, and all gradients of a
/// weighted sum of them.
pub(super) fn run(model: &Decoder, keep: Keep) -> Vec<Vec<f32>> {
    let vocab_size = model.config().vocab_size as u32;
    let rows: Vec<Vec<u32>> = [1, 2, 70, 131, 33]
        .map(|length| (0..length).map(|i| (i * i + length) % vocab_size).collect())
        .to_vec();
    // Some were sampled from three ids alone.
    let kept: Vec<BTreeMap<usize, Vec<u32>>> = rows
        .iter()
        .map(|ids| {
            let few = |id: u32| [id, (id + 3) % vocab_size, (id + 8) % vocab_size].to_vec();
            let targets = ids.iter().skip(1).step_by(2).enumerate().step_by(4);
            targets.map(|(target, id)| (target, few(*id))).collect()
        })
        .collect();
    let sequences: Vec<ScoredSequence> = rows
        .iter()
        .zip(&kept)
        .map(|(ids, kept)| ScoredSequence {
            ids,
            targets: (1..ids.len()).step_by(2).map(|i| (i, 0.5 + i as f32 * 0.01)).collect(),
            kept: Some(kept),
        })
        .collect();
    let batch = Arc::new(PackedBatch::new(&sequences));
    let pass = model.pass(batch.clone(), keep).unwrap();
    let dlogprobs: Vec<f32> = (0..batch.n_targets()).map(|i| (i as f32).sin()).collect();
    let dentropies: Vec<f32> =
        (0..batch.predictions.n_rows()).map(|i| 0.3 * (i as f32).cos()).collect();
    let mut all = vec![pass.logprobs().unwrap(), pass.entropies().unwrap()];
    let loss = Loss { dlogprobs: &dlogprobs, dentropies: Some(&dentropies), balance: 0.1 };
    let mut gradients = model.zero_gradients();
    let played = model.backward(pass, loss, &mut gradients).unwrap();
    let mut trained = model.parameters().iter().zip(played.reached).filter(|(p, _)| p.trainable);
    assert!(trained.all(|(_, reached)| reached));
    all.extend(gradients);
    all
}
