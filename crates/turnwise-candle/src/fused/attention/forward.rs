//! Forward pass: scores of a block of queries against all visible keys, softmax with log-sum-exp, output.

use std::mem;
use std::sync::Arc;

use rayon::prelude::*;
use turnwise_kernels::buffer::BufferPool;
use turnwise_kernels::math;
use turnwise_kernels::matrix::Write;
use turnwise_kernels::small::LeftFactor;
use turnwise_kernels::vectorized;

use super::AttentionSetting;
use super::blocks::{KeyHead, QueryBlock, Seen, key_heads};
use super::operand::{Operand, Orientation, queries, score};
use super::scratch::{SCRATCH, Scratch, room};
use crate::dimensions::Heads;

/// Fills `output`, and the log-sum-exp of each query's scores for the backward pass. `[N, n_heads]`
pub(crate) fn forward(
    mut output: &mut [f32],
    mut log_sum_exp: &mut [f32],
    qkv: &[f32],
    setting: AttentionSetting<'_>,
    pool: &Arc<BufferPool>,
) {
    let heads = setting.heads;
    let key_heads = key_heads(setting);
    let forward_heads: Vec<ForwardHead> = key_heads
        .par_iter()
        .map(|key_head| ForwardHead::of(qkv, key_head, setting, pool))
        .collect();
    // Blocks have the order of tokens, so that each gets its own rows.
    let mut work = Vec::new();
    let trees = key_heads.chunks(heads.n_kv_heads).zip(forward_heads.chunks(heads.n_kv_heads));
    for (key_heads, forward_heads) in trees {
        for block in key_heads[0].blocks() {
            let n = block.queries.len();
            let (own, rest) =
                mem::take(&mut output).split_at_mut(n * heads.n_heads * heads.head_dim);
            let (own_sums, rest_sums) = mem::take(&mut log_sum_exp).split_at_mut(n * heads.n_heads);
            (output, log_sum_exp) = (rest, rest_sums);
            work.push((forward_heads, block, own, own_sums));
        }
    }
    work.into_par_iter().for_each(|(forward_heads, block, output, log_sum_exp)| {
        SCRATCH.with_borrow_mut(|scratch| {
            for head in forward_heads {
                head.attend(qkv, &block, heads, scratch, output, log_sum_exp);
            }
        });
    });
}

/// The forward pass of a key head in a tree.
#[derive(Debug)]
struct ForwardHead {
    kv_head: usize,
    keys: Operand,
    values: Operand,
}

impl ForwardHead {
    fn of(
        qkv: &[f32],
        key_head: &KeyHead<'_>,
        AttentionSetting { heads, accuracy, .. }: AttentionSetting<'_>,
        pool: &Arc<BufferPool>,
    ) -> Self {
        let Heads { n_heads, n_kv_heads, .. } = heads;
        let operand = |head, orientation| {
            Operand::new(qkv, key_head, heads, head, (orientation, accuracy), pool)
        };
        Self {
            kv_head: key_head.kv_head,
            keys: operand(n_heads + key_head.kv_head, Orientation::Transposed),
            values: operand(n_heads + n_kv_heads + key_head.kv_head, Orientation::RowMajor),
        }
    }

    /// Writes the rows of the block's tokens. `[queries, n_heads * head_dim]` and `[queries, n_heads]`
    fn attend(
        &self,
        qkv: &[f32],
        block: &QueryBlock,
        heads: Heads,
        scratch: &mut Scratch,
        output: &mut [f32],
        log_sum_exp: &mut [f32],
    ) {
        let Heads { n_heads, head_dim, .. } = heads;
        let (group, n, stride) = (heads.group(), block.queries.len(), block.stride());
        let queries = queries(&mut scratch.queries, qkv, block, self.kv_head, heads);
        let scores = room(&mut scratch.scores, group * n * stride);
        score(&self.keys, block, queries, heads, scores);
        let sums = room(&mut scratch.log_sum_exp, group * n);
        softmax_rows(scores, stride, block.seen(), n, sums);
        for head in 0..group {
            let own = self.kv_head * group + head;
            for (query, lse) in sums[head * n..][..n].iter().enumerate() {
                log_sum_exp[query * n_heads + own] = *lse;
            }
            let scores = &scores[head * n * stride..];
            let mut write = Write::Replace;
            for key_block in &block.visible {
                let (data, terms) = (&scores[key_block.column..], key_block.keys.len());
                let left = LeftFactor { data, stride, step: 1, rows: n, terms };
                let target = &mut output[own * head_dim..];
                self.values.multiply(target, n_heads * head_dim, write, left, key_block);
                write = Write::Add;
            }
        }
    }
}

vectorized! {
    /// Computes the softmax of each row over the keys that its query sees, and 0 elsewhere. A head has `n` rows.
    fn softmax_rows(
        scores: &mut [f32],
        stride: usize,
        seen: Seen,
        n: usize,
        log_sum_exp: &mut [f32],
    ) {
        let rows = scores.chunks_exact_mut(stride).zip(log_sum_exp);
        for (i, (row, lse)) in rows.enumerate() {
            let seen = seen.by(i % n);
            let (row, unseen) = row.split_at_mut(seen.end);
            let (left, row) = row.split_at_mut(seen.start);
            let highest = math::maximum(row);
            let sum = math::exponentials(row, highest);
            *lse = highest + sum.ln();
            let factor = 1.0 / sum;
            for probability in row {
                *probability *= factor;
            }
            left.fill(0.0);
            unseen.fill(0.0);
        }
    }
}
