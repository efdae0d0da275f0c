//! A packed batch gives the same results as its rows one by one.

use std::sync::Arc;

use proptest::prelude::*;

use super::fixture::norm;
use super::variants::{perturbed, variants};
use crate::batch::{Cut, PackedBatch, ScoredSequence};
use crate::tape::{Keep, Loss};
use crate::{Decoder, Kernels};

/// Rows of a small alphabet with many common prefixes; some are equal.
fn rows() -> impl Strategy<Value = Vec<Vec<u32>>> {
    let own = proptest::collection::vec(0_u32..4, 0..70);
    let row = (any::<prop::sample::Index>(), 0_usize..100, own);
    proptest::collection::vec(row, 1..7).prop_map(|drawn| {
        let mut rows: Vec<Vec<u32>> = Vec::new();
        for (parent, shared, own) in drawn {
            let mut row = match rows.len() {
                0 => Vec::new(),
                n => rows[parent.index(n)].iter().copied().take(shared).collect(),
            };
            row.extend(own);
            rows.push(row);
        }
        rows
    })
}

/// Selects some tokens of each row, at two temperatures.
fn targets(row: &[u32], seed: usize) -> Vec<(usize, f32)> {
    let wanted = (1..row.len()).filter(|position| !(position * 7 + seed).is_multiple_of(3));
    wanted.map(|position| (position, if position % 5 == 0 { 0.7 } else { 1.0 })).collect()
}

/// Returns the log-probabilities of each row, the load-balancing loss, and the gradient of a weighted sum.
fn run(
    model: &Decoder,
    sequences: &[ScoredSequence<'_>],
    seed: usize,
) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let batch = Arc::new(PackedBatch::new(sequences));
    if batch.n_targets() == 0 {
        return (vec![Vec::new(); sequences.len()], model.zero_gradients());
    }
    let pass = model.pass(batch.clone(), Keep::Activations).unwrap();
    let logprobs = batch.split(&pass.logprobs().unwrap());
    let weights: Vec<Vec<f32>> = logprobs
        .iter()
        .enumerate()
        .map(|(row, list)| (0..list.len()).map(|i| ((row + seed + i * 3) as f32).sin()).collect())
        .collect();
    let weights: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
    let dlogprobs = batch.join(&weights);
    let mut gradients = model.zero_gradients();
    let loss = Loss { dlogprobs: &dlogprobs, ..Loss::default() };
    model.backward(pass, loss, &mut gradients).unwrap();
    (logprobs, gradients)
}

/// Computes rows one by one, without sharing.
fn apart(model: &Decoder, sequences: &[ScoredSequence<'_>]) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let (mut logprobs, mut sums) = (Vec::new(), model.zero_gradients());
    for (row, sequence) in sequences.iter().enumerate() {
        let (list, gradients) = run(model, std::slice::from_ref(sequence), row);
        logprobs.extend(list);
        for (sum, gradient) in sums.iter_mut().zip(gradients) {
            sum.iter_mut().zip(gradient).for_each(|(sum, x)| *sum += x);
        }
    }
    (logprobs, sums)
}

fn check(model: &Decoder, rows: &[Vec<u32>]) -> Result<(), TestCaseError> {
    let sequences: Vec<ScoredSequence<'_>> = rows
        .iter()
        .enumerate()
        .map(|(seed, ids)| ScoredSequence { ids, targets: targets(ids, seed), kept: None })
        .collect();
    let (together, gradients) = run(model, &sequences, 0);
    let (alone, expected) = apart(model, &sequences);
    for (together, alone) in together.iter().zip(&alone) {
        prop_assert_eq!(together.len(), alone.len());
        for (a, b) in together.iter().zip(alone) {
            prop_assert!((a - b).abs() < 2e-4, "{} {}", a, b);
        }
    }
    let parameters = model.parameters().iter().zip(gradients.iter().zip(&expected));
    for (parameter, (ours, theirs)) in parameters {
        let error = norm(ours.iter().zip(theirs).map(|(a, b)| f64::from(*a) - f64::from(*b)));
        let scale = norm(theirs.iter().map(|x| f64::from(*x)));
        prop_assert!(error <= 1e-4 * scale + 1e-5, "{}: {error} of {scale}", parameter.spec.name);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_forest_gives_what_its_rows_give_one_by_one(rows in rows(), family in 0_usize..15) {
        for kernels in [Kernels::Fused, Kernels::Plain] {
            check(&perturbed(variants()[family].clone(), 3).with_kernels(kernels), &rows)?;
        }
    }

    /// Every token is packed once, with its own prefix, and the parts of a list together hold each sequence once.
    #[test]
    fn no_token_is_computed_twice(rows in rows(), most in 1_usize..200) {
        let sequences: Vec<ScoredSequence<'_>> = rows.iter().map(|ids| ScoredSequence::whole(ids)).collect();
        let batch = PackedBatch::new(&sequences);
        let mut distinct = std::collections::HashSet::new();
        for row in &rows {
            let n_inputs = row.len().saturating_sub(1);
            distinct.extend((1..=n_inputs).map(|length| &row[..length]));
        }
        prop_assert_eq!(batch.n_inputs(), distinct.len());
        let in_rows: usize = rows.iter().map(|row| row.len().saturating_sub(1)).sum();
        prop_assert_eq!(batch.multiplicities.iter().sum::<u32>() as usize, in_rows);
        let tokens: Vec<usize> = batch.spans.iter().flat_map(|span| span.own.clone()).collect();
        prop_assert_eq!(tokens, (0..batch.n_inputs()).collect::<Vec<_>>());

        for cut in [Cut::Anywhere, Cut::BetweenTrees] {
            let chunks = PackedBatch::chunks(&sequences, most, cut);
            let n_inputs = |chunk: &Vec<usize>| {
                let some: Vec<ScoredSequence<'_>> = chunk.iter().map(|i| sequences[*i].clone()).collect();
                PackedBatch::new(&some).n_inputs()
            };
            let sizes: Vec<usize> = chunks.iter().map(n_inputs).collect();
            if cut == Cut::BetweenTrees {
                prop_assert_eq!(sizes.iter().sum::<usize>(), batch.n_inputs());
            } else {
                let fits = |(chunk, size): (&Vec<usize>, &usize)| chunk.len() == 1 || *size <= most;
                prop_assert!(chunks.iter().zip(&sizes).all(fits));
            }
            let mut all = chunks.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..rows.len()).collect::<Vec<_>>());
        }
    }
}

/// Equal tokens of the same distribution are computed once, and so is a distribution with several tokens.
#[test]
fn a_distribution_is_worked_out_once() {
    let rows = [vec![1, 2, 3], vec![1, 2, 3], vec![1, 2, 0]];
    let sequences: Vec<ScoredSequence<'_>> =
        rows.iter().map(|ids| ScoredSequence::whole(ids)).collect();
    let batch = PackedBatch::new(&sequences);
    assert_eq!(batch.inputs, [1, 2]);
    assert_eq!(batch.multiplicities, [3, 3]);
    assert_eq!(batch.predictions.sources.len(), 2);
    assert_eq!(batch.n_targets(), 3);
    let joined = batch.join(&[&[1.0, 10.0], &[2.0, 20.0], &[4.0, 40.0]]);
    let split = batch.split(&joined);
    assert_eq!(split, [[7.0, 30.0], [7.0, 30.0], [7.0, 40.0]]);
}
