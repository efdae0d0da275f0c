//! Causal attention over a forest: each token looks at its ancestors and at itself.
//!
//! Queries, keys and values of a token lie side by side: `[N, (n_heads + 2 n_kv_heads) * head_dim]`, the output is
//! `[N, n_heads * head_dim]`. A key head of a tree is copied together once; its query heads are computed with it, block by
//! block: scores of a block of queries against all that they may see are held, no more.

use std::ops::Range;

use rayon::prelude::*;

use super::dense::{self, Left, Right};
use crate::batch::{Batch, Span};
use crate::forward::Heads;
use crate::math;
use crate::simd::vectorized;
use crate::tile::LANES;

/// Tokens whose queries are computed at once.
const BLOCK: usize = 64;

/// Numbers behind a copy that a tile may read and nobody uses.
const BEYOND: usize = 8 * LANES;

/// Fills `mixed`, and the logarithm of each query's sum of exponentials for the backward pass. `[N, n_heads]`
pub(crate) fn forward(
    mixed: &mut [f32],
    log_sums: &mut [f32],
    qkv: &[f32],
    batch: &Batch,
    heads: Heads,
) {
    let group = heads.group();
    let parts = parts(batch, heads);
    let outputs: Vec<Output> = parts
        .par_iter()
        .map(|part| {
            let keys = Keys::of(qkv, part, heads);
            let blocks: Vec<Block<'_>> = part.spans.iter().flat_map(blocks).collect();
            let outputs: Vec<Output> = blocks
                .par_iter()
                .map_init(Vec::new, |scores, block| keys.mix(qkv, block, heads, scores))
                .collect();
            Output::joined(outputs)
        })
        .collect();
    let width = heads.head_dim * group;
    let rows = mixed.par_chunks_exact_mut(heads.n_heads * heads.head_dim);
    let rows = rows.zip(log_sums.par_chunks_exact_mut(heads.n_heads)).enumerate();
    let trees = outputs.chunks(heads.n_kv_heads).zip(parts.chunks(heads.n_kv_heads));
    let of_row: Vec<(&[Output], usize)> = trees
        .flat_map(|(outputs, parts)| (0..parts[0].tokens.len()).map(move |row| (outputs, row)))
        .collect();
    rows.with_min_len(BLOCK).for_each(|(token, (mixed, log_sums))| {
        let (outputs, row) = of_row[token];
        let each = mixed.chunks_exact_mut(width).zip(log_sums.chunks_exact_mut(group));
        for (output, (mixed, log_sums)) in outputs.iter().zip(each) {
            mixed.copy_from_slice(&output.mixed[row * width..][..width]);
            log_sums.copy_from_slice(&output.log_sums[row * group..][..group]);
        }
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

/// The gradient by queries, keys and values.
///
/// With `P` the weights and `O = P V`: `dV = P' dO`, and the scores' gradient is `dS = P * (dO V' - rowsum(dO * O))` (Dao et
/// al., *`FlashAttention`*, 2022, appendix B.2). Tokens share their ancestors' keys, so a key head of a tree is one thread's.
pub(crate) fn backward(dqkv: &mut [f32], above: &Above<'_>, batch: &Batch, heads: Heads) {
    let parts = parts(batch, heads);
    let pulled: Vec<Pulled> = parts.par_iter().map(|part| Pulled::of(part, above, heads)).collect();
    let trees = pulled.chunks(heads.n_kv_heads).zip(parts.chunks(heads.n_kv_heads));
    let of_row: Vec<(&[Pulled], usize)> = trees
        .flat_map(|(pulled, parts)| (0..parts[0].tokens.len()).map(move |row| (pulled, row)))
        .collect();
    let rows = dqkv.par_chunks_exact_mut(heads.width()).zip(&of_row);
    rows.with_min_len(BLOCK).for_each(|(dqkv, (pulled, row))| {
        for (kv_head, pulled) in pulled.iter().enumerate() {
            pulled.write(*row, dqkv, kv_head, heads);
        }
    });
}

/// A key head in a tree.
#[derive(Clone, Debug)]
struct Part<'a> {
    spans: &'a [Span],
    tokens: Range<usize>,
    kv_head: usize,
}

/// The key heads of each tree one after another.
fn parts(batch: &Batch, heads: Heads) -> Vec<Part<'_>> {
    let trees = batch
        .trees()
        .filter_map(|spans| Some((spans, spans.first()?.own.start..spans.last()?.own.end)));
    let of = |(spans, tokens): (_, Range<usize>)| {
        (0..heads.n_kv_heads).map(move |kv_head| Part { spans, tokens: tokens.clone(), kv_head })
    };
    trees.flat_map(of).collect()
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
    /// Stretches of keys in order of position, each with the column of its first score.
    fn keys(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        let ranges = self.before.iter().cloned().chain([self.own.clone()]);
        ranges.scan(0, |column, range| {
            let start = *column;
            *column += range.len();
            Some((start, range))
        })
    }

    fn n_keys(&self) -> usize {
        self.before.iter().map(Range::len).sum::<usize>() + self.own.len()
    }

    /// How many numbers rows of scores are apart: an odd number of vectors, because the cache keeps rows apart by their
    /// addresses' middle bits.
    fn stride(&self) -> usize {
        (self.n_keys().div_ceil(LANES) | 1) * LANES
    }

    /// How many keys the first query sees.
    fn first_seen(&self) -> usize {
        self.n_keys() - self.queries.len() + 1
    }
}

/// A key head of a tree, laid out for products.
#[derive(Debug)]
struct Keys {
    kv_head: usize,
    /// The tree's first token.
    start: usize,
    /// Numbers between rows that are transposed. A multiple of [`LANES`]
    length: usize,
    /// `[head_dim, length]`
    across: Vec<f32>,
    /// `[n, head_dim]`, padded to whole vectors
    values: Vec<f32>,
}

/// What queries of a block, head by head, have mixed.
#[derive(Debug, Default)]
struct Output {
    /// `[n, group, head_dim]`
    mixed: Vec<f32>,
    /// `[n, group]`
    log_sums: Vec<f32>,
}

impl Output {
    fn joined(outputs: Vec<Self>) -> Self {
        let mut joined = Self::default();
        for output in outputs {
            joined.mixed.extend_from_slice(&output.mixed);
            joined.log_sums.extend_from_slice(&output.log_sums);
        }
        joined
    }
}

impl Keys {
    fn of(qkv: &[f32], part: &Part<'_>, heads: Heads) -> Self {
        let length = part.tokens.len().next_multiple_of(LANES);
        let column = (heads.n_heads + part.kv_head) * heads.head_dim;
        let values = (heads.n_heads + heads.n_kv_heads + part.kv_head) * heads.head_dim;
        let copy = Copied { rows: qkv, stride: heads.width(), tokens: part.tokens.clone() };
        Self {
            kv_head: part.kv_head,
            start: part.tokens.start,
            length,
            across: copy.across(column, heads.head_dim, length),
            values: copy.along(values, heads.head_dim, 1.0),
        }
    }

    /// Adds the products of queries with all keys of their block to scores. `[rows, stride]`
    fn score(&self, block: &Block<'_>, queries: &[f32], heads: Heads, scores: &mut [f32]) {
        let head_dim = heads.head_dim;
        let (width, rows) = (head_dim.next_multiple_of(LANES), heads.group() * block.queries.len());
        let left = Left { data: queries, stride: width, step: 1, rows, terms: head_dim };
        for (column, keys) in block.keys() {
            let data = &self.across[keys.start - self.start..];
            let right = Right { data, stride: self.length, columns: keys.len() };
            dense::add(&mut scores[column..], block.stride(), left, right);
        }
    }

    fn mix(&self, qkv: &[f32], block: &Block<'_>, heads: Heads, scores: &mut Vec<f32>) -> Output {
        let Heads { head_dim, .. } = heads;
        let (group, n, stride) = (heads.group(), block.queries.len(), block.stride());
        let queries = queries(qkv, block, self.kv_head, heads);
        scores.clear();
        scores.resize(group * n * stride, 0.0);
        self.score(block, &queries, heads, scores);
        let mut log_sums = vec![0.0; group * n];
        softmax_rows(scores, stride, block.first_seen(), n, &mut log_sums);
        let width = head_dim.next_multiple_of(LANES);
        let mut mixed = vec![0.0; group * n * width];
        for (column, keys) in block.keys() {
            let terms = keys.len();
            let left = Left { data: &scores[column..], stride, step: 1, rows: group * n, terms };
            let data = &self.values[(keys.start - self.start) * width..];
            dense::add(&mut mixed, width, left, Right { data, stride: width, columns: width });
        }
        let mut output = Output::default();
        for query in 0..n {
            for head in 0..group {
                let row = head * n + query;
                output.mixed.extend_from_slice(&mixed[row * width..][..head_dim]);
                output.log_sums.push(log_sums[row]);
            }
        }
        output
    }
}

/// The query heads of a key head, one after another, scaled. `[group * queries, head_dim]`, padded to whole vectors
fn queries(qkv: &[f32], block: &Block<'_>, kv_head: usize, heads: Heads) -> Vec<f32> {
    let copy = Copied { rows: qkv, stride: heads.width(), tokens: block.queries.clone() };
    heads_of(&copy, kv_head, heads, heads.scale())
}

/// The query heads of a key head, one after another.
fn heads_of(copy: &Copied<'_>, kv_head: usize, heads: Heads, scale: f32) -> Vec<f32> {
    let (group, head_dim) = (heads.group(), heads.head_dim);
    let width = head_dim.next_multiple_of(LANES);
    let mut joined = Vec::with_capacity(group * copy.tokens.len() * width + BEYOND);
    for head in kv_head * group..(kv_head + 1) * group {
        joined.truncate(joined.len().saturating_sub(BEYOND));
        joined.extend(copy.along(head * head_dim, head_dim, scale));
    }
    joined
}

/// Some columns of some tokens, to be copied.
#[derive(Clone, Debug)]
struct Copied<'a> {
    rows: &'a [f32],
    stride: usize,
    tokens: Range<usize>,
}

impl Copied<'_> {
    /// Token by token, times `scale`. `[n, count]`, padded to whole vectors
    fn along(&self, column: usize, count: usize, scale: f32) -> Vec<f32> {
        let width = count.next_multiple_of(LANES);
        let mut copy = vec![0.0; self.tokens.len() * width + BEYOND];
        for (row, token) in copy.chunks_exact_mut(width).zip(self.tokens.clone()) {
            let numbers = &self.rows[token * self.stride + column..][..count];
            row.iter_mut().zip(numbers).for_each(|(copy, number)| *copy = number * scale);
        }
        copy
    }

    /// Column by column. `[count, length]`
    fn across(&self, column: usize, count: usize, length: usize) -> Vec<f32> {
        let mut copy = vec![0.0; count * length + BEYOND];
        for (row, token) in self.tokens.clone().enumerate() {
            let numbers = &self.rows[token * self.stride + column..][..count];
            for (i, number) in numbers.iter().enumerate() {
                copy[i * length + row] = *number;
            }
        }
        copy
    }
}

/// Gradients of a key head and its query heads in a tree, each head's rows together and padded to whole vectors.
#[derive(Debug)]
struct Pulled {
    width: usize,
    /// `[group, n, head_dim]`
    dqueries: Vec<f32>,
    /// `[n, head_dim]`
    dkeys: Vec<f32>,
    /// `[n, head_dim]`
    dvalues: Vec<f32>,
}

impl Pulled {
    fn of(part: &Part<'_>, above: &Above<'_>, heads: Heads) -> Self {
        let Heads { n_heads, head_dim, .. } = heads;
        let (n, width) = (part.tokens.len(), head_dim.next_multiple_of(LANES));
        let copy = Copied { rows: above.qkv, stride: heads.width(), tokens: part.tokens.clone() };
        let values = (n_heads + heads.n_kv_heads + part.kv_head) * head_dim;
        let length = n.next_multiple_of(LANES);
        let puller = Puller {
            keys: Keys::of(above.qkv, part, heads),
            along: copy.along((n_heads + part.kv_head) * head_dim, head_dim, 1.0),
            values_across: copy.across(values, head_dim, length),
            above,
            heads,
        };
        let mut sums = Self {
            width,
            dqueries: vec![0.0; heads.group() * n * width],
            dkeys: vec![0.0; n * width],
            dvalues: vec![0.0; n * width],
        };
        let mut scratch = Scratch::default();
        for block in part.spans.iter().flat_map(blocks) {
            puller.pull(&block, &mut scratch, &mut sums);
        }
        sums
    }

    /// Puts the gradients of one token in their places.
    fn write(&self, row: usize, dqkv: &mut [f32], kv_head: usize, heads: Heads) {
        let Heads { n_heads, n_kv_heads, head_dim } = heads;
        let (group, n) = (heads.group(), self.dkeys.len() / self.width);
        let mut put = |head: usize, values: &[f32], row: usize| {
            dqkv[head * head_dim..][..head_dim]
                .copy_from_slice(&values[row * self.width..][..head_dim]);
        };
        for index in 0..group {
            put(kv_head * group + index, &self.dqueries, index * n + row);
        }
        put(n_heads + kv_head, &self.dkeys, row);
        put(n_heads + n_kv_heads + kv_head, &self.dvalues, row);
    }
}

/// Memory for a block.
#[derive(Debug, Default)]
struct Scratch {
    weights: Vec<f32>,
    dscores: Vec<f32>,
}

/// The backward pass of a key head in a tree.
#[derive(Debug)]
struct Puller<'a> {
    keys: Keys,
    /// `[n, head_dim]`, padded to whole vectors
    along: Vec<f32>,
    /// `[head_dim, length]`
    values_across: Vec<f32>,
    above: &'a Above<'a>,
    heads: Heads,
}

impl Puller<'_> {
    fn pull(&self, block: &Block<'_>, scratch: &mut Scratch, pulled: &mut Pulled) {
        let (heads, above, kv_head) = (self.heads, self.above, self.keys.kv_head);
        let Heads { n_heads, head_dim, .. } = heads;
        let (group, n, stride) = (heads.group(), block.queries.len(), block.stride());
        let (rows, width) = (group * n, pulled.width);
        let Scratch { weights, dscores } = scratch;
        let queries = queries(above.qkv, block, kv_head, heads);
        weights.clear();
        weights.resize(rows * stride, 0.0);
        self.keys.score(block, &queries, heads, weights);
        let side = |rows| {
            let copy = Copied { rows, stride: n_heads * head_dim, tokens: block.queries.clone() };
            heads_of(&copy, kv_head, heads, 1.0)
        };
        let (mixed, dmixed) = (side(above.mixed), side(above.dmixed));
        dscores.clear();
        dscores.resize(rows * stride, 0.0);
        let left = Left { data: &dmixed, stride: width, step: 1, rows, terms: head_dim };
        for (column, keys) in block.keys() {
            let data = &self.values_across[keys.start - self.keys.start..];
            let right = Right { data, stride: self.keys.length, columns: keys.len() };
            dense::add(&mut dscores[column..], stride, left, right);
        }
        let log_sums = |row: usize| {
            let (head, query) = (row / n, row % n);
            above.log_sums[(block.queries.start + query) * n_heads + kv_head * group + head]
        };
        let log_sums: Vec<f32> = (0..rows).map(log_sums).collect();
        let sides = Sides { mixed: &mixed, dmixed: &dmixed, width, log_sums: &log_sums };
        pull_rows(weights, dscores, stride, block.first_seen(), n, sides);
        self.products(block, scratch, &queries, &dmixed, pulled);
    }

    /// From the weights and the gradient of the scores to those of queries, keys and values.
    fn products(
        &self,
        block: &Block<'_>,
        scratch: &Scratch,
        queries: &[f32],
        dmixed: &[f32],
        pulled: &mut Pulled,
    ) {
        let (group, n, stride) = (self.heads.group(), block.queries.len(), block.stride());
        let (rows, width, start) = (group * n, pulled.width, self.keys.start);
        let mut dqueries = vec![0.0; rows * width];
        let side = |data| Right { data, stride: width, columns: width };
        for (column, keys) in block.keys() {
            let across =
                |data| Left { data, stride: 1, step: stride, rows: keys.len(), terms: rows };
            let place = (keys.start - start) * width;
            let dvalues = &mut pulled.dvalues[place..];
            dense::add(dvalues, width, across(&scratch.weights[column..]), side(dmixed));
            // The queries are scaled, as the keys' gradient is.
            let dkeys = &mut pulled.dkeys[place..];
            dense::add(dkeys, width, across(&scratch.dscores[column..]), side(queries));
            let data = &scratch.dscores[column..];
            let left = Left { data, stride, step: 1, rows, terms: keys.len() };
            dense::add(&mut dqueries, width, left, side(&self.along[place..]));
        }
        let (scale, tree) = (self.heads.scale(), pulled.dkeys.len());
        for head in 0..group {
            let place = head * tree + (block.queries.start - start) * width;
            let from = &dqueries[head * n * width..][..n * width];
            let to = &mut pulled.dqueries[place..][..n * width];
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from * scale);
        }
    }
}

/// What rows of scores are pulled with. `[rows, width]` and `[rows]`
#[derive(Clone, Copy, Debug)]
struct Sides<'a> {
    mixed: &'a [f32],
    dmixed: &'a [f32],
    width: usize,
    log_sums: &'a [f32],
}

vectorized! {
    /// Softmax of each row over the keys it sees, 0 elsewhere. Of every `n` rows the first sees `seen`, each later one more.
    fn softmax_rows(
        scores: &mut [f32],
        stride: usize,
        seen: usize,
        n: usize,
        log_sums: &mut [f32],
    ) {
        let rows = scores.chunks_exact_mut(stride).zip(log_sums);
        for (i, (row, log_sum)) in rows.enumerate() {
            let (row, unseen) = row.split_at_mut(seen + i % n);
            let highest = math::maximum(row);
            let sum = math::exponentials(row, highest);
            *log_sum = highest + sum.ln();
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
        stride: usize,
        seen: usize,
        n: usize,
        sides: Sides<'_>,
    ) {
        let Sides { mixed, dmixed, width, log_sums } = sides;
        let each = weights.chunks_exact_mut(stride).zip(dscores.chunks_exact_mut(stride));
        for (i, (weights, dscores)) in each.enumerate() {
            let place = i * width..(i + 1) * width;
            let mean = math::dot(&dmixed[place.clone()], &mixed[place]);
            let (weights, unseen) = weights.split_at_mut(seen + i % n);
            let (dscores, unseen_too) = dscores.split_at_mut(seen + i % n);
            for (weight, dscore) in weights.iter_mut().zip(dscores) {
                *weight = math::exp(*weight - log_sums[i]);
                *dscore = *weight * (*dscore - mean);
            }
            unseen.fill(0.0);
            unseen_too.fill(0.0);
        }
    }
}
