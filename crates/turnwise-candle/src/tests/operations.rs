//! The gradient of each operation alone, compared with finite differences. `forward.rs` compares the results of
//! operations with the tensor library's.

use std::ops::Range;
use std::sync::Arc;

use turnwise_kernels::buffer::BufferPool;
use turnwise_kernels::matrix::{Accuracy, Write, has_fast_bf16};

use super::fixture::norm;
use crate::architecture::Activation;
use crate::batch::{AttentionSpan, PackedBatch, Predictions, ScoredSequence};
use crate::dimensions::Heads;
use crate::fused::attention::AttentionSetting;
use crate::fused::{attention, experts, gate, heads, linear, logprob, residual, rms_norm};
use crate::layout::{Choice, HeadNorms};
use crate::rope::Rope;
use crate::slots::SlotNumbers;
use crate::{ComputePrecision, DecoderConfig};

const EPS: f32 = 1e-6;

fn uneven(length: usize, seed: usize) -> Vec<f32> {
    (0..length).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect()
}

/// Lists of numbers.
type Lists = Vec<Vec<f32>>;

/// Computes input gradients from inputs and output gradients.
type Backward<'a> = dyn Fn(&[Vec<f32>], &[f32]) -> Lists + 'a;

/// An operation on lists of numbers.
struct Operation<'a> {
    inputs: Lists,
    forward: &'a dyn Fn(&[Vec<f32>]) -> Vec<f32>,
    backward: &'a Backward<'a>,
}

impl Operation<'_> {
    /// A weighted sum of the outputs must grow along the gradient of each input at the rate of the gradient's norm.
    fn check(&self) {
        let weights = uneven((self.forward)(&self.inputs).len(), 99);
        let loss = |inputs: &[Vec<f32>]| -> f64 {
            let outputs = (self.forward)(inputs);
            outputs.iter().zip(&weights).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum()
        };
        let gradients = (self.backward)(&self.inputs, &weights);
        assert_eq!(gradients.len(), self.inputs.len());
        for (index, gradient) in gradients.iter().enumerate() {
            let length = norm(gradient.iter().map(|x| f64::from(*x)));
            let step = 1e-2;
            let moved = |sign: f64| {
                let mut inputs = self.inputs.clone();
                for (x, gradient) in inputs[index].iter_mut().zip(gradient) {
                    *x += (sign * step / length * f64::from(*gradient)) as f32;
                }
                loss(&inputs)
            };
            let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
            let error = (slope - length).abs();
            assert!(length > 1e-3 && error < 3e-3 * length, "{index}: {slope} {length}");
        }
    }
}

#[test]
fn norm_of_rows() {
    let (n, width) = (70, 33);
    let forward = |inputs: &[Vec<f32>]| {
        let mut y = vec![0.0; n * width];
        rms_norm::forward(&mut y, &inputs[0], &inputs[1], EPS);
        y
    };
    let backward = |inputs: &[Vec<f32>], dy: &[f32]| {
        let mut dx = vec![0.0; n * width];
        let dgain = rms_norm::backward(&mut dx, Write::Replace, &inputs[0], &inputs[1], dy, EPS);
        vec![dx, dgain]
    };
    let inputs = vec![uneven(n * width, 1), uneven(width, 2)];
    Operation { inputs, forward: &forward, backward: &backward }.check();
}

#[test]
fn gate_of_a_feed_forward_half() {
    let (n, width) = (70, 21);
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let forward = |inputs: &[Vec<f32>]| {
            let mut y = vec![0.0; n * width];
            gate::forward(&mut y, &inputs[0], width, activation);
            y
        };
        let backward = |inputs: &[Vec<f32>], dy: &[f32]| {
            let mut dx = vec![0.0; 2 * n * width];
            gate::backward(&mut dx, &inputs[0], dy, width, activation);
            vec![dx]
        };
        let inputs = vec![uneven(2 * n * width, 1)];
        Operation { inputs, forward: &forward, backward: &backward }.check();
    }
}

#[test]
fn rows_that_a_gate_weighs() {
    let (n, width) = (70, 21);
    let forward = |inputs: &[Vec<f32>]| {
        let mut y = vec![0.0; n * width];
        residual::forward(&mut y, &inputs[0], &inputs[1]);
        y
    };
    let backward = |inputs: &[Vec<f32>], dy: &[f32]| {
        let (mut dx, mut dgate) = (vec![0.0; n * width], vec![0.0; n]);
        residual::backward(&mut dx, &mut dgate, &inputs[0], &inputs[1], dy);
        vec![dx, dgate]
    };
    let inputs = vec![uneven(n * width, 1), uneven(n, 2)];
    Operation { inputs, forward: &forward, backward: &backward }.check();
}

/// Three matrices with the same input, like queries, keys and values.
#[test]
fn products_with_matrices() {
    let (n, width, counts) = (50, 40, [64, 32, 32]);
    let stride: usize = counts.iter().sum();
    let slices = |inputs: &[Vec<f32>]| -> Vec<Vec<f32>> { inputs[1..].to_vec() };
    let forward = |inputs: &[Vec<f32>]| {
        let weights = slices(inputs);
        let weights: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
        let mut y = vec![0.0; n * stride];
        linear::forward_joined(
            &mut y,
            stride,
            Write::Replace,
            &inputs[0],
            width,
            &weights,
            Accuracy::Full,
        );
        y
    };
    let backward = |inputs: &[Vec<f32>], dy: &[f32]| {
        let weights = slices(inputs);
        let weights: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
        let mut dx = vec![0.0; n * width];
        let gradient = Accuracy::Gradient;
        linear::backward_x_joined(&mut dx, Write::Replace, dy, stride, width, &weights, gradient);
        let mut dweights = counts.map(|count| vec![0.0; count * width]);
        let first = linear::ColumnRange { start: 0, count: counts[0], stride };
        let mut each: Vec<&mut [f32]> = dweights.iter_mut().map(Vec::as_mut_slice).collect();
        linear::backward_weights(&mut each, dy, first, &inputs[0], width, gradient);
        [vec![dx], dweights.to_vec()].concat()
    };
    let weights = counts.iter().enumerate().map(|(i, count)| uneven(count * width, i + 2));
    let inputs = [uneven(n * width, 1)].into_iter().chain(weights).collect();
    Operation { inputs, forward: &forward, backward: &backward }.check();
}

fn config() -> DecoderConfig {
    DecoderConfig { n_heads: 4, n_kv_heads: 2, head_dim: 20, ..DecoderConfig::small(50) }
}

/// QK-norm of each head and of all heads together, and rotary position embedding of whole heads, of a part of each, and
/// of none.
#[test]
fn rotation_of_heads() {
    let config = config();
    let DecoderConfig { rope_theta, head_dim, max_positions, .. } = config;
    let of = Heads::of(&config);
    let positions: Vec<u32> = (0..70).map(|i| i * 3 % 50).collect();
    for (rotary_dim, [query, key]) in [(head_dim, [20, 20]), (12, [80, 40]), (0, [20, 20])] {
        let rope = Rope::new(&config.rope_scaling, rope_theta, rotary_dim, max_positions);
        let backward = |inputs: &[Vec<f32>], dy: &[f32]| {
            let norms = HeadNorms { query: &inputs[1][..], key: &inputs[2][..] };
            let (rope, positions) = (&rope, &positions);
            let rotation =
                heads::HeadRotation { heads: of, norms: Some(&norms), eps: EPS, rope, positions };
            let mut dx = dy.to_vec();
            let dgains = heads::backward(&mut dx, &inputs[0], rotation).unwrap();
            vec![dx, dgains.query, dgains.key]
        };
        let forward = |inputs: &[Vec<f32>]| {
            let norms = HeadNorms { query: &inputs[1][..], key: &inputs[2][..] };
            let (rope, positions) = (&rope, &positions);
            let rotation =
                heads::HeadRotation { heads: of, norms: Some(&norms), eps: EPS, rope, positions };
            let mut y = vec![0.0; inputs[0].len()];
            heads::forward(&mut y, &inputs[0], rotation);
            y
        };
        let rows = uneven(positions.len() * of.width(), 1);
        let inputs = vec![rows, uneven(query, 2), uneven(key, 3)];
        Operation { inputs, forward: &forward, backward: &backward }.check();
    }
}

/// Returns a tree whose rows share a prefix, branch inside other rows, and continue over two spans; long enough for several
/// blocks and a matrix unit.
fn tree() -> PackedBatch {
    let row =
        |seed: u32| -> Vec<u32> { (0..200).map(|i| if i < 90 { i } else { i * seed }).collect() };
    let mut forked = row(3);
    forked[160..].iter_mut().for_each(|id| *id += 1);
    let rows = [row(3), row(5), row(3)[..130].to_vec(), forked];
    let sequences: Vec<ScoredSequence<'_>> =
        rows.iter().map(|ids| ScoredSequence::whole(ids)).collect();
    let batch = PackedBatch::new(&sequences);
    let n_seen = |span: &AttentionSpan| span.before.iter().map(Range::len).collect::<Vec<_>>();
    assert!(batch.spans.iter().any(|span| n_seen(span) == [160]), "over the end of a span");
    batch
}

/// Returns what attention makes of queries, keys and values, and their gradient.
fn attended(
    qkv: &[f32],
    dmixed: &[f32],
    batch: &PackedBatch,
    window: Option<usize>,
    precision: ComputePrecision,
) -> [Vec<f32>; 2] {
    let (heads, pool) = (Heads::of(&config()), Arc::new(BufferPool::default()));
    let setting = |accuracy| AttentionSetting { batch, heads, window, accuracy };
    let n = batch.n_inputs();
    let mut mixed = vec![0.0; n * heads.n_heads * heads.head_dim];
    let mut log_sums = vec![0.0; n * heads.n_heads];
    attention::forward(&mut mixed, &mut log_sums, qkv, setting(precision.forward()), &pool);
    let saved = attention::Saved { qkv, output: &mixed, log_sum_exp: &log_sums, doutput: dmixed };
    let mut dqkv = vec![0.0; if dmixed.is_empty() { 0 } else { qkv.len() }];
    if !dmixed.is_empty() {
        attention::backward(&mut dqkv, &saved, setting(precision.backward()), &pool);
    }
    [mixed, dqkv]
}

#[test]
fn attention_over_a_tree() {
    let batch = tree();
    for window in [None, Some(1), Some(70), Some(190), Some(200)] {
        let of = |inputs: &[Vec<f32>], dmixed: &[f32]| {
            attended(&inputs[0], dmixed, &batch, window, ComputePrecision::F32)
        };
        let forward = |inputs: &[Vec<f32>]| {
            let [mixed, _] = of(inputs, &[]);
            mixed
        };
        let backward = |inputs: &[Vec<f32>], dmixed: &[f32]| {
            let [_, dqkv] = of(inputs, dmixed);
            vec![dqkv]
        };
        let inputs = vec![uneven(batch.n_inputs() * Heads::of(&config()).width(), 1)];
        Operation { inputs, forward: &forward, backward: &backward }.check();
    }
}

/// Rounded factors change the results of a tree with odd spans by as much as rounding does.
#[test]
fn attention_in_bf16() {
    let (batch, heads) = (tree(), Heads::of(&config()));
    let qkv = uneven(batch.n_inputs() * heads.width(), 1);
    let dmixed = uneven(batch.n_inputs() * heads.n_heads * heads.head_dim, 2);
    for window in [None, Some(70)] {
        let of = |precision| attended(&qkv, &dmixed, &batch, window, precision);
        let (exact, rounded) = (of(ComputePrecision::F32), of(ComputePrecision::Bf16));
        for (exact, rounded) in exact.iter().zip(&rounded) {
            let error = norm(exact.iter().zip(rounded).map(|(a, b)| f64::from(a - b)));
            let size = norm(exact.iter().map(|x| f64::from(*x)));
            assert!(error < 1e-2 * size, "{window:?}: {error} of {size}");
            let is_rounded = window.is_none() && has_fast_bf16();
            assert!(!is_rounded || error > 1e-5 * size, "products are in bf16");
        }
    }
}

/// Two of five experts for each token, chosen with a margin that no small step crosses.
#[test]
fn experts_of_each_token() {
    let (n, width, inner, n_experts) = (150, 20, 24, 5);
    let pool = Arc::new(BufferPool::default());
    let mut router: Vec<f32> = uneven(n_experts * width, 2).iter().map(|x| 0.1 * x).collect();
    (0..n_experts).for_each(|expert| router[expert * width + expert] = 2.0);
    let mut rows = uneven(n * width, 1);
    for (token, row) in rows.chunks_exact_mut(width).enumerate() {
        row[..n_experts].iter_mut().for_each(|x| *x *= 0.1);
        row[token % n_experts] += 1.2;
        row[(token + 1 + token / n_experts % (n_experts - 1)) % n_experts] += 0.7;
    }
    let matrix = |seed| uneven(n_experts * inner * width, seed);
    let inputs = vec![rows, router, matrix(3), matrix(4), matrix(5)];
    for renormalize in [false, true] {
        let choice = Choice { n_experts, n_chosen: 2, renormalize };
        let mix = |inputs: &[Vec<f32>]| {
            let mut y = vec![0.0; n * width];
            let kept = experts::forward(&mut y, &inputs[0], weights(inputs, choice), &pool);
            (y, kept)
        };
        let backward = |inputs: &[Vec<f32>], dy: &[f32]| {
            let (_, kept) = mix(inputs);
            let mut below: Lists = inputs[1..].iter().map(|x| vec![0.0; x.len()]).collect();
            let mut each = below.iter_mut().map(|x| Some(x.as_mut_slice()));
            let [router, gate, up, down] = std::array::from_fn(|_| each.next().unwrap());
            let below_each = experts::Below { router, gate, up, down };
            let weights = weights(inputs, choice);
            let dx = experts::backward(below_each, dy, &inputs[0], &kept, weights, None, &pool);
            [vec![dx.to_vec()], below].concat()
        };
        let forward = |inputs: &[Vec<f32>]| mix(inputs).0;
        Operation { inputs: inputs.clone(), forward: &forward, backward: &backward }.check();
    }
}

fn weights(inputs: &[Vec<f32>], choice: Choice) -> experts::Weights<'_> {
    let [_, router, gate, up, down] = inputs else { panic!("rows and four matrices") };
    experts::Weights { router, gate, up, down, choice, precision: ComputePrecision::F32 }
}

/// The inputs of predictions: rows and the head.
fn read<'a>(inputs: &'a [Vec<f32>], wanted: &'a Predictions) -> logprob::Read<'a> {
    let (x, head) = (&inputs[0], &inputs[1]);
    let width = x.len() / wanted.n_rows();
    logprob::Read {
        x,
        head: SlotNumbers::Held(head),
        width,
        wanted,
        precision: ComputePrecision::F32,
    }
}

/// Log-probabilities and entropies, at two temperatures, over the whole vocabulary and over kept sets.
#[test]
fn predictions_over_the_vocabulary() {
    let (width, vocab_size) = (24, 700);
    let ids: Vec<u32> = (0..60).map(|i| i * 11 % 700).collect();
    let targets = (1..ids.len()).map(|at| (at, if at % 2 == 0 { 1.0 } else { 0.7 })).collect();
    // Whole stretches of the vocabulary have no kept id, as the sets differ in size.
    let kept = (0..ids.len() - 1).step_by(3).map(|target| {
        let others = (0..target as u32).map(|id| (id * 37 + 5) % 700);
        (target, others.chain([ids[target + 1]]).collect())
    });
    let kept = kept.collect();
    let batch = PackedBatch::new(&[ScoredSequence { ids: &ids, targets, kept: Some(&kept) }]);
    let (wanted, pool) = (&batch.predictions, Arc::new(BufferPool::default()));
    let forward = |inputs: &[Vec<f32>]| {
        let predicted = logprob::forward(read(inputs, wanted));
        [predicted.logprobs, predicted.entropies].concat()
    };
    let backward = |inputs: &[Vec<f32>], dy: &[f32]| {
        let predicted = logprob::forward(read(inputs, wanted));
        let (dlogprobs, dentropies) = dy.split_at(predicted.logprobs.len());
        let above = logprob::Above { dlogprobs, dentropies: Some(dentropies) };
        let (mut dx, mut dhead) = (vec![0.0; inputs[0].len()], vec![0.0; inputs[1].len()]);
        let below = logprob::Below { dx: &mut dx, dhead: Some(&mut dhead) };
        logprob::backward(below, read(inputs, wanted), &predicted, above, &pool);
        vec![dx, dhead]
    };
    let inputs = vec![uneven(wanted.n_rows() * width, 1), uneven(vocab_size * width, 2)];
    Operation { inputs, forward: &forward, backward: &backward }.check();
}
