//! One pass of the model over the tokens of a step.

use rayon::prelude::*;

use super::kv::{KvCache, LayerKv};
use super::mixture::MixtureMemory;
use crate::forward::Heads;
use crate::math;
use crate::matrix::{Matrix, MatrixMut, Threads, Write, multiply_rows_apart};
use crate::weights::{FeedForwardWeights, LayerWeights, MlpWeights, Product, Weights};

/// With fewer tokens, handing work to other threads costs more than it saves.
pub(super) const MIN_TOKENS_PER_THREAD: usize = 8;

/// A token to compute.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    /// Whose it is: an index into the caches.
    pub(super) slot: usize,
    pub(super) id: u32,
    pub(super) position: usize,
    /// Whether its logits are wanted.
    pub(super) wants_logits: bool,
}

/// Memory for a step, kept between steps.
#[derive(Debug, Default)]
pub(super) struct Compute {
    /// The residual stream. `[N, D]`
    x: Vec<f32>,
    /// What a half layer reads. `[N, D]`
    normed: Vec<f32>,
    /// `[N, (n_heads + 2 n_kv_heads) * head_dim]`
    qkv: Vec<f32>,
    /// `[N, n_heads * head_dim]`
    mixed: Vec<f32>,
    /// `[N, 2 * intermediate_size]`
    gate_up: Vec<f32>,
    /// `[N, intermediate_size]`
    inner: Vec<f32>,
    experts: MixtureMemory,
    /// `[M, V]`
    logits: Vec<f32>,
}

impl Compute {
    /// Appends the tokens' keys and values to their caches and returns the logits of those that want them, in order.
    /// `[M, V]`. Tokens of one slot come in order of position, right behind what its cache holds.
    pub(super) fn run(
        &mut self,
        weights: &Weights,
        tokens: &[Token],
        caches: &mut [&mut KvCache],
    ) -> &[f32] {
        self.embed(weights, tokens);
        for (index, layer) in weights.layers.iter().enumerate() {
            self.attention(weights, layer, tokens, caches, index);
            self.feed_forward(weights, layer);
        }
        for token in tokens {
            caches[token.slot].ids.push(token.id);
        }
        self.head(weights, tokens)
    }

    fn embed(&mut self, weights: &Weights, tokens: &[Token]) {
        let d = weights.config.hidden_size;
        self.x.clear();
        for token in tokens {
            self.x.extend_from_slice(&weights.embedding[token.id as usize * d..][..d]);
        }
        pad(&mut self.x, d);
    }

    fn attention(
        &mut self,
        weights: &Weights,
        layer: &LayerWeights,
        tokens: &[Token],
        caches: &mut [&mut KvCache],
        index: usize,
    ) {
        let (heads, eps) = (Heads::of(&weights.config), weights.config.rms_norm_eps as f32);
        let (d, head_dim) = (weights.config.hidden_size, heads.head_dim);
        let (q, kv) = (heads.n_heads * head_dim, heads.n_kv_heads * head_dim);
        norm_rows(&mut self.normed, &self.x, &layer.attention_norm, eps);
        linear(&mut self.qkv, Write::Replace, &self.normed, d, &layer.qkv, q + 2 * kv);

        // Queries and keys are normed and turned where they lie.
        let rows = self.qkv.par_chunks_exact_mut(q + 2 * kv).zip(tokens);
        rows.with_min_len(MIN_TOKENS_PER_THREAD).for_each(|(row, token)| {
            let (query, rest) = row.split_at_mut(q);
            let key = &mut rest[..kv];
            if let Some((query_norm, key_norm)) = &layer.head_norms {
                norm_heads(query, query_norm, eps);
                norm_heads(key, key_norm, eps);
            }
            weights.rope.turn(query, token.position);
            weights.rope.turn(key, token.position);
        });
        for (row, token) in self.qkv.chunks_exact(q + 2 * kv).zip(tokens) {
            let cache = &mut caches[token.slot].layers[index];
            cache.keys.extend_from_slice(&row[q..q + kv]);
            cache.values.extend_from_slice(&row[q + kv..]);
        }

        self.mixed.resize(self.x.len() / d * q, 0.0);
        let caches: Vec<&LayerKv> = caches.iter().map(|cache| &cache.layers[index]).collect();
        let rows = self.mixed.par_chunks_exact_mut(q).zip(self.qkv.par_chunks_exact(q + 2 * kv));
        rows.zip(tokens).with_min_len(MIN_TOKENS_PER_THREAD).for_each_init(
            Vec::new,
            |scores, ((mixed, row), token)| {
                attend(mixed, &row[..q], caches[token.slot], token.position + 1, heads, scores);
            },
        );
        linear(&mut self.x, Write::Add, &self.mixed, q, &layer.output, d);
    }

    fn feed_forward(&mut self, weights: &Weights, layer: &LayerWeights) {
        let (d, eps) = (weights.config.hidden_size, weights.config.rms_norm_eps as f32);
        norm_rows(&mut self.normed, &self.x, &layer.mlp_norm, eps);
        match &layer.feed_forward {
            FeedForwardWeights::Dense(mlp) => self.mlp(mlp, d, weights.config.intermediate_size),
            FeedForwardWeights::Mixture(mixture) => {
                self.experts.add(&mut self.x, &self.normed, d, mixture);
            }
        }
    }

    fn mlp(&mut self, mlp: &MlpWeights, d: usize, inner: usize) {
        linear(&mut self.gate_up, Write::Replace, &self.normed, d, &mlp.gate_up, 2 * inner);
        swiglu_rows(&mut self.inner, &self.gate_up, inner);
        linear(&mut self.x, Write::Add, &self.inner, inner, &mlp.down, d);
    }

    fn head(&mut self, weights: &Weights, tokens: &[Token]) -> &[f32] {
        let (d, vocab_size) = (weights.config.hidden_size, weights.config.vocab_size);
        // The rows that are wanted move to the front, over rows that nobody needs any more.
        let mut wanted = 0;
        for (index, _) in tokens.iter().enumerate().filter(|(_, token)| token.wants_logits) {
            self.x.copy_within(index * d..(index + 1) * d, wanted * d);
            wanted += 1;
        }
        if wanted == 0 {
            return &[];
        }
        self.x.truncate(wanted * d);
        pad(&mut self.x, d);
        norm_rows(&mut self.normed, &self.x, &weights.norm, weights.config.rms_norm_eps as f32);
        let (logits, head) = (&mut self.logits, &weights.head);
        product(logits, Write::Replace, &self.normed, d, head, vocab_size, Threads::Pool);
        &self.logits[..wanted * vocab_size]
    }
}

/// A lone row gets a companion: products need two.
fn pad(rows: &mut Vec<f32>, width: usize) {
    if rows.len() == width {
        rows.resize(2 * width, 0.0);
    }
}

fn norm_rows(target: &mut Vec<f32>, x: &[f32], gain: &[f32], eps: f32) {
    target.resize(x.len(), 0.0);
    let rows = target.par_chunks_exact_mut(gain.len()).zip(x.par_chunks_exact(gain.len()));
    rows.with_min_len(4 * MIN_TOKENS_PER_THREAD)
        .for_each(|(target, x)| math::rms_norm(target, x, gain, eps));
}

fn norm_heads(heads: &mut [f32], gain: &[f32], eps: f32) {
    for head in heads.chunks_exact_mut(gain.len()) {
        let factor = math::inverse_rms(head, eps);
        for (x, gain) in head.iter_mut().zip(gain) {
            *x = *x * factor * gain;
        }
    }
}

/// `silu(gate) * up` of rows of gate and up, each `width` wide.
pub(super) fn swiglu_rows(target: &mut Vec<f32>, gate_up: &[f32], width: usize) {
    target.resize(gate_up.len() / 2, 0.0);
    let rows = target.par_chunks_exact_mut(width).zip(gate_up.par_chunks_exact(2 * width));
    rows.with_min_len(MIN_TOKENS_PER_THREAD).for_each(|(target, gate_up)| {
        let (gate, up) = gate_up.split_at(width);
        for ((target, gate), up) in target.iter_mut().zip(gate).zip(up) {
            *target = math::silu(*gate) * up;
        }
    });
}

/// `[N, width]` times `[width, columns]`, with the bias added to each row.
fn linear(
    target: &mut Vec<f32>,
    write: Write,
    a: &[f32],
    width: usize,
    by: &Product,
    columns: usize,
) {
    product(target, write, a, width, &by.matrix, columns, Threads::Pool);
    if let Some(bias) = &by.bias {
        let rows = target.par_chunks_exact_mut(columns);
        rows.with_min_len(4 * MIN_TOKENS_PER_THREAD)
            .for_each(|row| math::add_scaled(row, 1.0, bias));
    }
}

/// `[N, width]` times `[width, columns]`.
pub(super) fn product(
    target: &mut Vec<f32>,
    write: Write,
    a: &[f32],
    width: usize,
    b: &[f32],
    columns: usize,
    threads: Threads,
) {
    target.resize(a.len() / width * columns, 0.0);
    let mut target = MatrixMut::rows(target, columns);
    let (a, b) = (Matrix::rows(a, width), Matrix::rows(b, columns));
    multiply_rows_apart(&mut target, write, a, b, threads);
}

/// Attention of one token over the first `length` of its sequence, in order of position.
fn attend(
    mixed: &mut [f32],
    query: &[f32],
    cache: &LayerKv,
    length: usize,
    heads: Heads,
    scores: &mut Vec<f32>,
) {
    let Heads { n_kv_heads, head_dim, .. } = heads;
    let (width, scale) = (n_kv_heads * head_dim, heads.scale());
    let queries = query.chunks_exact(head_dim).zip(mixed.chunks_exact_mut(head_dim));
    for (head, (query, mixed)) in queries.enumerate() {
        let offset = head / heads.group() * head_dim;
        let keys = cache.keys[..length * width].chunks_exact(width);
        scores.clear();
        scores.extend(keys.map(|key| math::dot(query, &key[offset..offset + head_dim]) * scale));
        math::softmax(scores);
        mixed.fill(0.0);
        let values = cache.values[..length * width].chunks_exact(width);
        for (weight, value) in scores.iter().zip(values) {
            math::add_scaled(mixed, *weight, &value[offset..offset + head_dim]);
        }
    }
}
