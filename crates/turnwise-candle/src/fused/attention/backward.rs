//! Backward pass: recomputes probabilities from scores and log-sum-exp, one block of queries at a time.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;
use turnwise_kernels::buffer::{Buffer, BufferPool};
use turnwise_kernels::math;
use turnwise_kernels::matrix::{Accuracy, Write};
use turnwise_kernels::small::{self, LeftFactor, RightFactor};
use turnwise_kernels::tile::LANES;
use turnwise_kernels::vectorized;

use super::AttentionSetting;
use super::blocks::{BLOCK, KeyHead, QueryBlock, Seen, key_heads};
use super::operand::{HeadColumns, Operand, Orientation, heads_of, queries, score};
use super::scratch::{SCRATCH, Scratch, room};
use crate::dimensions::Heads;

/// The most strips that the queries of a tree are divided into for the backward pass, each with sums of its own. The
/// number is fixed, so that sums do not depend on the number of threads.
const STRIPS: usize = 8;

/// The fewest blocks of queries in a strip.
const STRIP_BLOCKS: usize = 4;

/// What the forward pass saved for the backward pass, and the gradient of its output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Saved<'a> {
    pub(crate) qkv: &'a [f32],
    pub(crate) output: &'a [f32],
    pub(crate) log_sum_exp: &'a [f32],
    /// The gradient of `output`.
    pub(crate) doutput: &'a [f32],
}

/// Computes the gradient of queries, keys and values.
///
/// With `P` the probabilities and `O = P V`: `dV = P' dO`, and the gradient of the scores is `dS = P * (dO V' - delta)`
/// with `delta = rowsum(dO * O)` (Dao et al., *`FlashAttention`*, 2022, appendix B.2). Tokens share their ancestors'
/// keys, so each strip of a tree's queries has its own sums of the gradients of keys and values, which are then added.
pub(crate) fn backward(
    dqkv: &mut [f32],
    saved: &Saved<'_>,
    setting: AttentionSetting<'_>,
    pool: &Arc<BufferPool>,
) {
    let heads = setting.heads;
    let key_heads = key_heads(setting);
    let backward_heads: Vec<BackwardHead<'_>> = key_heads
        .par_iter()
        .map(|key_head| BackwardHead::of(key_head, saved, setting, pool))
        .collect();
    // All key heads of a tree have the same blocks.
    let blocks: Vec<Vec<QueryBlock>> =
        key_heads.chunks(heads.n_kv_heads).map(|of_tree| of_tree[0].blocks().collect()).collect();
    let strips: Vec<(usize, &[QueryBlock])> = (0..key_heads.len())
        .flat_map(|key_head| {
            strips(&blocks[key_head / heads.n_kv_heads]).map(move |strip| (key_head, strip))
        })
        .collect();
    let gradients: Vec<StripGradient> = strips
        .par_iter()
        .map(|(key_head, blocks)| backward_heads[*key_head].strip_gradient(blocks, pool))
        .collect();
    let mut by_key_head: Vec<&[StripGradient]> = Vec::with_capacity(key_heads.len());
    let mut rest = &gradients[..];
    for same in strips.chunk_by(|(key_head, _), (next, _)| key_head == next) {
        let (own, others) = rest.split_at(same.len());
        by_key_head.push(own);
        rest = others;
    }
    let trees = by_key_head.chunks(heads.n_kv_heads).zip(key_heads.chunks(heads.n_kv_heads));
    let of_row: Vec<(&[&[StripGradient]], usize)> = trees
        .flat_map(|(strips, key_heads)| {
            (0..key_heads[0].tokens.len()).map(move |row| (strips, row))
        })
        .collect();
    let rows = dqkv.par_chunks_exact_mut(heads.width()).zip(&of_row);
    rows.with_min_len(BLOCK).for_each(|(dqkv, (key_heads, row))| {
        for (kv_head, strips) in key_heads.iter().enumerate() {
            write_token(strips, *row, dqkv, kv_head, heads);
        }
    });
}

/// Writes a token's gradients, summed over strips.
fn write_token(
    strips: &[StripGradient],
    row: usize,
    dqkv: &mut [f32],
    kv_head: usize,
    heads: Heads,
) {
    let Heads { n_heads, n_kv_heads, head_dim, .. } = heads;
    let width = head_dim.next_multiple_of(LANES);
    let group = heads.group();
    let place = |head: usize| head * head_dim..(head + 1) * head_dim;
    for strip in strips {
        if let Some(own) = row.checked_sub(strip.start).filter(|own| *own < strip.count) {
            for index in 0..group {
                let numbers = &strip.dqueries[(index * strip.count + own) * width..][..head_dim];
                dqkv[place(kv_head * group + index)].copy_from_slice(numbers);
            }
        }
    }
    for (head, of) in [
        (n_heads + kv_head, (|strip| &strip.dkeys) as fn(&StripGradient) -> &Buffer),
        (n_heads + n_kv_heads + kv_head, |strip| &strip.dvalues),
    ] {
        let sum = &mut dqkv[place(head)];
        sum.fill(0.0);
        // A strip has no gradient for keys after its last query.
        for strip in strips.iter().filter(|strip| (row + 1) * width <= of(strip).len()) {
            math::add_scaled(sum, 1.0, &of(strip)[row * width..][..head_dim]);
        }
    }
}

/// Divides a tree's blocks of queries into strips.
fn strips(blocks: &[QueryBlock]) -> impl Iterator<Item = &[QueryBlock]> {
    blocks.chunks(blocks.len().div_ceil(STRIPS).max(STRIP_BLOCKS))
}

/// Gradients of a key head and its query heads from one strip of queries; rows are padded to whole vectors.
#[derive(Debug)]
struct StripGradient {
    /// The row of the first query in the tree.
    start: usize,
    /// The number of queries.
    count: usize,
    /// `[group, count, head_dim]`
    dqueries: Buffer,
    /// Gradients of all rows of the tree up to the last query. `[n, head_dim]`
    dkeys: Buffer,
    /// `[n, head_dim]`
    dvalues: Buffer,
}

/// The backward pass of a key head in a tree.
#[derive(Debug)]
struct BackwardHead<'a> {
    kv_head: usize,
    /// The tree's first token.
    start: usize,
    keys_transposed: Operand,
    keys: Operand,
    values_transposed: Operand,
    saved: &'a Saved<'a>,
    heads: Heads,
    accuracy: Accuracy,
}

impl<'a> BackwardHead<'a> {
    fn of(
        key_head: &KeyHead<'_>,
        saved: &'a Saved<'a>,
        AttentionSetting { heads, accuracy, .. }: AttentionSetting<'_>,
        pool: &Arc<BufferPool>,
    ) -> Self {
        let (keys, values) =
            (heads.n_heads + key_head.kv_head, heads.n_heads + heads.n_kv_heads + key_head.kv_head);
        let operand = |head, orientation| {
            Operand::new(saved.qkv, key_head, heads, head, (orientation, accuracy), pool)
        };
        Self {
            kv_head: key_head.kv_head,
            start: key_head.tokens.start,
            keys_transposed: operand(keys, Orientation::Transposed),
            keys: operand(keys, Orientation::RowMajor),
            values_transposed: operand(values, Orientation::Transposed),
            saved,
            heads,
            accuracy,
        }
    }

    /// Returns the gradient of a strip of queries.
    fn strip_gradient(&self, blocks: &[QueryBlock], pool: &Arc<BufferPool>) -> StripGradient {
        let width = self.heads.head_dim.next_multiple_of(LANES);
        let start = blocks.first().map_or(0, |block| block.queries.start);
        let end = blocks.last().map_or(0, |block| block.queries.end);
        let visible = (end - self.start) * width;
        let mut gradient = StripGradient {
            start: start - self.start,
            count: end - start,
            dqueries: pool.take(self.heads.group() * (end - start) * width),
            dkeys: pool.zeros(visible),
            dvalues: pool.zeros(visible),
        };
        SCRATCH.with_borrow_mut(|scratch| {
            for block in blocks {
                self.add_block(block, scratch, &mut gradient);
            }
        });
        gradient
    }

    /// Adds the gradient of a block of queries.
    fn add_block(&self, block: &QueryBlock, scratch: &mut Scratch, gradient: &mut StripGradient) {
        let (heads, saved, kv_head) = (self.heads, self.saved, self.kv_head);
        let Heads { n_heads, head_dim, .. } = heads;
        let (group, n, stride) = (heads.group(), block.queries.len(), block.stride());
        let (rows, width) = (group * n, head_dim.next_multiple_of(LANES));
        let queries = queries(&mut scratch.queries, saved.qkv, block, kv_head, heads);
        let probabilities = room(&mut scratch.scores, rows * stride);
        score(&self.keys_transposed, block, queries, heads, probabilities);
        let side = |memory, rows| {
            let copy =
                HeadColumns { rows, stride: n_heads * head_dim, tokens: block.queries.clone() };
            heads_of(memory, &copy, kv_head, heads, 1.0)
        };
        let output = side(&mut scratch.output, saved.output);
        let doutput = side(&mut scratch.doutput, saved.doutput);
        let dscores = room(&mut scratch.dscores, rows * stride);
        score(&self.values_transposed, block, doutput, heads, dscores);
        let log_sum_exp = room(&mut scratch.log_sum_exp, rows);
        for (row, lse) in log_sum_exp.iter_mut().enumerate() {
            let (head, query) = (row / n, row % n);
            let at = (block.queries.start + query) * n_heads + kv_head * group + head;
            *lse = saved.log_sum_exp[at];
        }
        let inputs = RowInputs { output, doutput, width, log_sum_exp };
        recompute_rows(probabilities, dscores, stride, block.seen(), n, inputs);
        let products = Products { queries, doutput, probabilities, dscores };
        self.multiply(block, products, &mut scratch.dqueries, gradient);
    }

    /// Multiplies probabilities and the gradient of the scores into the gradients of queries, keys and values.
    fn multiply(
        &self,
        block: &QueryBlock,
        products: Products<'_>,
        dqueries: &mut Vec<f32>,
        gradient: &mut StripGradient,
    ) {
        let Products { queries, doutput, probabilities, dscores } = products;
        let (group, n, stride) = (self.heads.group(), block.queries.len(), block.stride());
        let (rows, start) = (group * n, self.start);
        let width = self.heads.head_dim.next_multiple_of(LANES);
        let dqueries = room(dqueries, rows * width);
        let side = |data| RightFactor { data, stride: width, columns: width };
        let mut write = Write::Replace;
        for key_block in &block.visible {
            let (column, terms) = (key_block.column, key_block.keys.len());
            let across =
                |data| LeftFactor { data, stride: 1, step: stride, rows: terms, terms: rows };
            let place = (key_block.keys.start - start) * width;
            let (probabilities, dscores) = (&probabilities[column..], &dscores[column..]);
            let dvalues = &mut gradient.dvalues[place..];
            small::multiply(
                dvalues,
                width,
                Write::Add,
                across(probabilities),
                side(doutput),
                self.accuracy,
            );
            // The queries are scaled, and so is the keys' gradient.
            let dkeys = &mut gradient.dkeys[place..];
            small::multiply(
                dkeys,
                width,
                Write::Add,
                across(dscores),
                side(queries),
                self.accuracy,
            );
            let left = LeftFactor { data: dscores, stride, step: 1, rows, terms };
            self.keys.multiply(dqueries, width, write, left, key_block);
            write = Write::Add;
        }
        let scale = self.heads.scale;
        let first = block.queries.start - start - gradient.start;
        for head in 0..group {
            let to = &mut gradient.dqueries[(head * gradient.count + first) * width..][..n * width];
            let from = &dqueries[head * n * width..][..n * width];
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from * scale);
        }
    }
}

/// The inputs of the last products of a block's backward pass.
#[derive(Clone, Copy, Debug)]
struct Products<'a> {
    queries: &'a [f32],
    doutput: &'a [f32],
    probabilities: &'a [f32],
    dscores: &'a [f32],
}

/// The inputs for recomputing a block's rows. `[rows, width]` and `[rows]`
#[derive(Clone, Copy, Debug)]
struct RowInputs<'a> {
    output: &'a [f32],
    doutput: &'a [f32],
    width: usize,
    log_sum_exp: &'a [f32],
}

vectorized! {
    /// Recomputes probabilities from scores, `P = exp(S - L)`, and replaces their gradient by that of the scores,
    /// `dS = P * (dP - delta)`.
    fn recompute_rows(
        probabilities: &mut [f32],
        dscores: &mut [f32],
        stride: usize,
        seen: Seen,
        n: usize,
        inputs: RowInputs<'_>,
    ) {
        let RowInputs { output, doutput, width, log_sum_exp } = inputs;
        let each = probabilities.chunks_exact_mut(stride).zip(dscores.chunks_exact_mut(stride));
        for (i, (probabilities, dscores)) in each.enumerate() {
            let place = i * width..(i + 1) * width;
            let delta = math::dot(&doutput[place.clone()], &output[place]);
            let Range { start, end } = seen.by(i % n);
            for row in [&mut *probabilities, &mut *dscores] {
                row[..start].fill(0.0);
                row[end..].fill(0.0);
            }
            let seen = probabilities[start..end].iter_mut().zip(&mut dscores[start..end]);
            for (probability, dscore) in seen {
                *probability = math::exp(*probability - log_sum_exp[i]);
                *dscore = *probability * (*dscore - delta);
            }
        }
    }
}
