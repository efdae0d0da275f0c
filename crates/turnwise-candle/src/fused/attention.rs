//! Causal attention over a forest: each token looks at its ancestors and at itself.
//!
//! Queries, keys and values of a token lie side by side: `[N, (n_heads + 2 n_kv_heads) * head_dim]`, the output is
//! `[N, n_heads * head_dim]`. Scores of a block of queries against all that they may see are held, no more.

use std::ops::Range;

use rayon::prelude::*;

use crate::batch::{Batch, Span};
use crate::forward::Heads;
use crate::math;
use crate::matrix::{Matrix, MatrixMut, Threads, Write, multiply};
use crate::simd::vectorized;

/// Queries that are computed at once.
const BLOCK: usize = 64;

/// Fills `mixed`, and the logarithm of each query's sum of exponentials for the backward pass. `[N, n_heads]`
pub(crate) fn forward(
    mixed: &mut [f32],
    log_sums: &mut [f32],
    qkv: &[f32],
    batch: &Batch,
    heads: Heads,
) {
    let mut blocks: Vec<_> = batch.spans.iter().flat_map(blocks).collect();
    let (mut mixed, mut log_sums) = (mixed, log_sums);
    let work = blocks.drain(..).filter_map(|block| {
        let n = block.queries.len();
        let mixed = mixed.split_off_mut(..n * heads.n_heads * heads.head_dim)?;
        let log_sums = log_sums.split_off_mut(..n * heads.n_heads)?;
        Some((block, mixed, log_sums))
    });
    let work: Vec<_> = work.collect();
    work.into_par_iter().for_each_init(Vec::new, |scores, (block, mixed, log_sums)| {
        for head in 0..heads.n_heads {
            Reader { qkv, heads, head }.mix(&block, mixed, log_sums, scores);
        }
    });
}

/// The gradient by queries, keys and values.
///
/// With `P` the weights and `O = P V`: `dV = P' dO`, and the scores' gradient is `dS = P * (dO V' - rowsum(dO * O))` (Dao et
/// al., *`FlashAttention`*, 2022, appendix B.2).
pub(crate) fn backward(dqkv: &mut [f32], above: &Above<'_>, batch: &Batch, heads: Heads) {
    let width = heads.width();
    let mut rest = dqkv;
    let trees = batch.trees().filter_map(|spans| {
        let tokens = spans.first()?.own.start..spans.last()?.own.end;
        Some((spans, rest.split_off_mut(..tokens.len() * width)?, tokens.start))
    });
    let trees: Vec<_> = trees.collect();
    // Tokens share their ancestors' keys, so a tree is one thread's, or one for each key head.
    trees.into_par_iter().for_each(|(spans, dqkv, start)| {
        let n = dqkv.len() / width;
        let pulled: Vec<Pulled> = (0..heads.n_kv_heads)
            .into_par_iter()
            .map(|kv_head| pull_tree(spans, start, n, kv_head, above, heads))
            .collect();
        let rows = dqkv.par_chunks_exact_mut(width).enumerate();
        rows.with_min_len(BLOCK).for_each(|(row, dqkv)| {
            for (kv_head, pulled) in pulled.iter().enumerate() {
                pulled.write(row, dqkv, kv_head, heads);
            }
        });
    });
}

/// What the backward pass reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Above<'a> {
    pub(crate) qkv: &'a [f32],
    pub(crate) mixed: &'a [f32],
    pub(crate) log_sums: &'a [f32],
    /// The gradient by `mixed`.
    pub(crate) dmixed: &'a [f32],
}

/// Some queries of a span, and what they look at.
#[derive(Clone, Debug)]
struct Block<'a> {
    before: &'a [Range<usize>],
    /// The span's own tokens up to the last query.
    own: Range<usize>,
    queries: Range<usize>,
}

fn blocks(span: &Span) -> impl Iterator<Item = Block<'_>> {
    let Range { start, end } = span.own;
    (start..end).step_by(BLOCK).map(move |first| {
        let queries = first..(first + BLOCK).min(end);
        Block { before: &span.before, own: start..queries.end, queries }
    })
}

impl Block<'_> {
    /// Stretches of keys, in order of position.
    fn keys(&self) -> impl Iterator<Item = Range<usize>> {
        self.before.iter().cloned().chain([self.own.clone()])
    }

    fn n_keys(&self) -> usize {
        self.keys().map(|range| range.len()).sum()
    }

    /// How many keys the first query sees.
    fn first_seen(&self) -> usize {
        self.n_keys() - self.queries.len() + 1
    }
}

/// One query head and its key head in the rows of a batch.
#[derive(Clone, Copy, Debug)]
struct Reader<'a> {
    qkv: &'a [f32],
    heads: Heads,
    head: usize,
}

impl<'a> Reader<'a> {
    fn columns(&self, tokens: Range<usize>, head: usize) -> Matrix<'a> {
        let Heads { head_dim, .. } = self.heads;
        let width = self.heads.width();
        let start = tokens.start * width + head * head_dim;
        Matrix::strided(&self.qkv[start..], tokens.len(), head_dim, width)
    }

    fn queries(&self, tokens: Range<usize>) -> Matrix<'a> {
        self.columns(tokens, self.head)
    }

    fn keys(&self, tokens: Range<usize>) -> Matrix<'a> {
        self.columns(tokens, self.heads.n_heads + self.head / self.heads.group())
    }

    fn values(&self, tokens: Range<usize>) -> Matrix<'a> {
        let Heads { n_heads, n_kv_heads, .. } = self.heads;
        self.columns(tokens, n_heads + n_kv_heads + self.head / self.heads.group())
    }

    /// Scaled products of queries with all keys of their block. `[queries, keys]`
    fn scores(&self, block: &Block<'_>, scores: &mut Vec<f32>) {
        let (n, columns) = (block.queries.len(), block.n_keys());
        scores.resize(n * columns, 0.0);
        let mut start = 0;
        for keys in block.keys() {
            let count = keys.len();
            let mut target = MatrixMut::strided(&mut scores[start..], n, count, columns);
            let (queries, keys) = (self.queries(block.queries.clone()), self.keys(keys));
            product(&mut target, Write::Replace, self.heads.scale(), queries, keys.transposed());
            start += count;
        }
    }

    fn mix(
        &self,
        block: &Block<'_>,
        mixed: &mut [f32],
        log_sums: &mut [f32],
        scores: &mut Vec<f32>,
    ) {
        let Heads { n_heads, head_dim, .. } = self.heads;
        let (n, columns) = (block.queries.len(), block.n_keys());
        self.scores(block, scores);
        let log_sums = Strided { values: log_sums, first: self.head, stride: n_heads };
        softmax_rows(scores, columns, block.first_seen(), log_sums);
        let width = n_heads * head_dim;
        let mut target = MatrixMut::strided(&mut mixed[self.head * head_dim..], n, head_dim, width);
        let (mut write, mut start) = (Write::Replace, 0);
        for keys in block.keys() {
            let weights = Matrix::strided(&scores[start..], n, keys.len(), columns);
            start += keys.len();
            product(&mut target, write, 1.0, weights, self.values(keys));
            write = Write::Add;
        }
    }
}

/// Every so many numbers.
#[derive(Debug)]
struct Strided<'a> {
    values: &'a mut [f32],
    first: usize,
    stride: usize,
}

/// Gradients of one key head and its query heads in a tree, each head's rows together. `[n, head_dim]` each
#[derive(Debug)]
struct Pulled {
    /// One for each query head.
    dqueries: Vec<Vec<f32>>,
    dkeys: Vec<f32>,
    dvalues: Vec<f32>,
}

impl Pulled {
    /// Puts the gradients of one token in their places.
    fn write(&self, row: usize, dqkv: &mut [f32], kv_head: usize, heads: Heads) {
        let Heads { n_heads, n_kv_heads, head_dim } = heads;
        let mut put = |head: usize, values: &[f32]| {
            dqkv[head * head_dim..][..head_dim]
                .copy_from_slice(&values[row * head_dim..][..head_dim]);
        };
        for (index, dquery) in self.dqueries.iter().enumerate() {
            put(kv_head * heads.group() + index, dquery);
        }
        put(n_heads + kv_head, &self.dkeys);
        put(n_heads + n_kv_heads + kv_head, &self.dvalues);
    }
}

fn pull_tree(
    spans: &[Span],
    start: usize,
    n: usize,
    kv_head: usize,
    above: &Above<'_>,
    heads: Heads,
) -> Pulled {
    let zeros = || vec![0.0; n * heads.head_dim];
    let (mut dqueries, mut dkeys, mut dvalues) = (Vec::new(), zeros(), zeros());
    let (mut weights, mut dscores) = (Vec::new(), Vec::new());
    for head in kv_head * heads.group()..(kv_head + 1) * heads.group() {
        let mut puller = Puller {
            reader: Reader { qkv: above.qkv, heads, head },
            above,
            start,
            dquery: zeros(),
            dkeys: &mut dkeys,
            dvalues: &mut dvalues,
        };
        for block in spans.iter().flat_map(blocks) {
            puller.pull(&block, &mut weights, &mut dscores);
        }
        dqueries.push(puller.dquery);
    }
    Pulled { dqueries, dkeys, dvalues }
}

/// The backward pass of one query head in a tree whose tokens begin at `start`.
#[derive(Debug)]
struct Puller<'a> {
    reader: Reader<'a>,
    above: &'a Above<'a>,
    start: usize,
    dquery: Vec<f32>,
    dkeys: &'a mut [f32],
    dvalues: &'a mut [f32],
}

impl Puller<'_> {
    fn pull(&mut self, block: &Block<'_>, weights: &mut Vec<f32>, dscores: &mut Vec<f32>) {
        let Heads { n_heads, head_dim, .. } = self.reader.heads;
        let (n, columns) = (block.queries.len(), block.n_keys());
        self.reader.scores(block, weights);
        let Range { start: first, end } = block.queries;
        let place = self.reader.head * head_dim;
        let side = |x| Matrix::strided(x, n, head_dim, n_heads * head_dim);
        let dmixed = &self.above.dmixed[first * n_heads * head_dim..];
        let dmixed_head = side(&dmixed[place..]);
        dscores.resize(n * columns, 0.0);
        let mut column = 0;
        for keys in block.keys() {
            let values = self.reader.values(keys.clone()).transposed();
            let mut target = MatrixMut::strided(&mut dscores[column..], n, keys.len(), columns);
            product(&mut target, Write::Replace, 1.0, dmixed_head, values);
            column += keys.len();
        }
        let rows = Rows {
            mixed: &self.above.mixed[first * n_heads * head_dim..],
            dmixed,
            log_sums: &self.above.log_sums[first * n_heads..end * n_heads],
            heads: self.reader.heads,
            head: self.reader.head,
        };
        pull_rows(weights, dscores, columns, block.first_seen(), &rows);
        self.products(block, weights, dscores, dmixed_head);
    }

    /// From the weights and the gradient of the scores to those of queries, keys and values.
    fn products(
        &mut self,
        block: &Block<'_>,
        weights: &[f32],
        dscores: &[f32],
        dmixed: Matrix<'_>,
    ) {
        let Heads { head_dim, .. } = self.reader.heads;
        let (n, columns) = (block.queries.len(), block.n_keys());
        let scale = self.reader.heads.scale();
        let row = |token: usize| (token - self.start) * head_dim;
        let (mut column, mut write) = (0, Write::Replace);
        for keys in block.keys() {
            let part = |x| Matrix::strided(x, n, keys.len(), columns);
            let (weights, dscores) = (part(&weights[column..]), part(&dscores[column..]));
            let place = row(keys.start)..row(keys.end);
            let mut dvalues = MatrixMut::rows(&mut self.dvalues[place.clone()], head_dim);
            product(&mut dvalues, Write::Add, 1.0, weights.transposed(), dmixed);
            let mut dkeys = MatrixMut::rows(&mut self.dkeys[place], head_dim);
            let queries = self.reader.queries(block.queries.clone());
            product(&mut dkeys, Write::Add, scale, dscores.transposed(), queries);
            let own = row(block.queries.start)..row(block.queries.end);
            let mut dquery = MatrixMut::rows(&mut self.dquery[own], head_dim);
            product(&mut dquery, write, scale, dscores, self.reader.keys(keys.clone()));
            (column, write) = (column + keys.len(), Write::Add);
        }
    }
}

/// What rows of scores are pulled with.
#[derive(Clone, Copy, Debug)]
struct Rows<'a> {
    mixed: &'a [f32],
    dmixed: &'a [f32],
    log_sums: &'a [f32],
    heads: Heads,
    head: usize,
}

vectorized! {
    /// Softmax of each row over the keys it sees, 0 elsewhere. The first row sees `seen` of them, each later row one more.
    fn softmax_rows(scores: &mut [f32], columns: usize, seen: usize, log_sums: Strided<'_>) {
        let Strided { values, first, stride } = log_sums;
        for (i, row) in scores.chunks_exact_mut(columns).enumerate() {
            let (row, unseen) = row.split_at_mut(seen + i);
            let highest = math::maximum(row);
            let sum = math::exponentials(row, highest);
            values[i * stride + first] = highest + sum.ln();
            let factor = 1.0 / sum;
            for weight in row {
                *weight *= factor;
            }
            unseen.fill(0.0);
        }
    }

    /// Turns scores into weights, and the gradient of the weights into that of the scores.
    fn pull_rows(
        weights: &mut [f32],
        dscores: &mut [f32],
        columns: usize,
        seen: usize,
        rows: &Rows<'_>,
    ) {
        let Rows { mixed, dmixed, log_sums, heads, head } = *rows;
        let Heads { n_heads, head_dim, .. } = heads;
        let each = weights.chunks_exact_mut(columns).zip(dscores.chunks_exact_mut(columns));
        for (i, (weights, dscores)) in each.enumerate() {
            let place = (i * n_heads + head) * head_dim;
            let mean =
                math::dot(&dmixed[place..place + head_dim], &mixed[place..place + head_dim]);
            let log_sum = log_sums[i * n_heads + head];
            let (weights, unseen) = weights.split_at_mut(seen + i);
            let (dscores, unseen_too) = dscores.split_at_mut(seen + i);
            for (weight, dscore) in weights.iter_mut().zip(dscores) {
                *weight = math::exp(*weight - log_sum);
                *dscore = *weight * (*dscore - mean);
            }
            unseen.fill(0.0);
            unseen_too.fill(0.0);
        }
    }
}

/// Blocks are what runs side by side, so each product is one thread's.
fn product(target: &mut MatrixMut<'_>, write: Write, scale: f32, a: Matrix<'_>, b: Matrix<'_>) {
    multiply(target, write, scale, a, b, Threads::One);
}
