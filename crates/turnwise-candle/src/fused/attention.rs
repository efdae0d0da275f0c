use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::batch::Batch;
use crate::forward::Heads;
use crate::math;
use crate::matrix::{Matrix, MatrixMut, Threads, Write, multiply};
use crate::numbers::{like, numbers, stored, stored_numbers};

/// Queries that are computed at once: the scores of so many against all keys before them are held.
const BLOCK: usize = 64;

/// Causal attention inside each sequence. `[N, n_heads * head_dim]` and twice `[N, n_kv_heads * head_dim]`
pub(crate) fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    batch: &Batch,
    heads: Heads,
) -> Result<Tensor> {
    query.apply_op3(key, value, Attention { starts: batch.starts.clone(), heads })
}

struct Attention {
    starts: Arc<[usize]>,
    heads: Heads,
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "causal-attention"
    }

    fn cpu_fwd(
        &self,
        query: &CpuStorage,
        query_layout: &Layout,
        key: &CpuStorage,
        key_layout: &Layout,
        value: &CpuStorage,
        value_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (query, key) = (stored_numbers(query, query_layout)?, stored_numbers(key, key_layout)?);
        let value = stored_numbers(value, value_layout)?;
        let mut mixed = vec![0.0; query.len()];
        let sequences = self.sequences(query, key, value).into_par_iter();
        let outputs = self.cut_mut(&mut mixed, self.heads.n_heads);
        sequences.zip(outputs).for_each(|(sequence, output)| sequence.mix(output));
        Ok(stored(mixed, query_layout.shape()))
    }

    fn bwd(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        mixed: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut dquery = vec![0.0; query.elem_count()];
        let (mut dkey, mut dvalue) = (vec![0.0; key.elem_count()], vec![0.0; key.elem_count()]);
        let gradient = gradient.contiguous()?;
        let inputs = (numbers(query)?, numbers(key)?, numbers(value)?);
        let (mixed, gradient) = (numbers(mixed)?, numbers(&gradient)?);
        let Heads { n_heads, n_kv_heads, .. } = self.heads;
        let sequences = self.sequences(&inputs.0, &inputs.1, &inputs.2).into_par_iter();
        let above = sequences.zip(self.cut(&mixed, n_heads)).zip(self.cut(&gradient, n_heads));
        let outputs = self.cut_mut(&mut dquery, n_heads).into_par_iter();
        let outputs = outputs
            .zip(self.cut_mut(&mut dkey, n_kv_heads))
            .zip(self.cut_mut(&mut dvalue, n_kv_heads));
        above.zip(outputs).for_each(|(((sequence, mixed), gradient), ((dquery, dkey), dvalue))| {
            sequence.pull(Above { mixed, gradient }, &mut Pulled { dquery, dkey, dvalue });
        });
        drop(inputs);
        Ok((Some(like(dquery, query)?), Some(like(dkey, key)?), Some(like(dvalue, value)?)))
    }
}

impl Attention {
    /// The tokens of each sequence, `heads` wide.
    fn cut<'a>(&self, x: &'a [f32], heads: usize) -> Vec<&'a [f32]> {
        let width = heads * self.heads.head_dim;
        self.starts.windows(2).map(|pair| &x[pair[0] * width..pair[1] * width]).collect()
    }

    fn cut_mut<'a>(&self, mut x: &'a mut [f32], heads: usize) -> Vec<&'a mut [f32]> {
        let width = heads * self.heads.head_dim;
        let lengths = self.starts.windows(2).map(|pair| (pair[1] - pair[0]) * width);
        lengths
            .map(|length| x.split_off_mut(..length).expect("starts end with the tokens"))
            .collect()
    }

    fn sequences<'a>(
        &self,
        query: &'a [f32],
        key: &'a [f32],
        value: &'a [f32],
    ) -> Vec<Sequence<'a>> {
        let Heads { n_heads, n_kv_heads, .. } = self.heads;
        let keys = self.cut(key, n_kv_heads).into_iter().zip(self.cut(value, n_kv_heads));
        let queries = self.cut(query, n_heads).into_iter();
        queries
            .zip(keys)
            .map(|(query, (key, value))| Sequence { query, key, value, heads: self.heads })
            .collect()
    }
}

/// What attention reads in one sequence of `T` tokens.
struct Sequence<'a> {
    /// `[T, n_heads * head_dim]`
    query: &'a [f32],
    /// `[T, n_kv_heads * head_dim]`
    key: &'a [f32],
    /// `[T, n_kv_heads * head_dim]`
    value: &'a [f32],
    heads: Heads,
}

/// What comes from above in the backward pass. `[T, n_heads * head_dim]` each
#[derive(Clone, Copy)]
struct Above<'a> {
    mixed: &'a [f32],
    gradient: &'a [f32],
}

/// The gradients of a sequence, zero at first.
struct Pulled<'a> {
    dquery: &'a mut [f32],
    dkey: &'a mut [f32],
    dvalue: &'a mut [f32],
}

/// Some queries of one head: those from `start` to `end`, which look at the keys before `end`.
#[derive(Clone, Copy)]
struct Block {
    head: usize,
    start: usize,
    end: usize,
}

impl Sequence<'_> {
    fn blocks(&self) -> impl Iterator<Item = Block> {
        let length = self.query.len() / (self.heads.n_heads * self.heads.head_dim);
        (0..self.heads.n_heads).flat_map(move |head| {
            let starts = (0..length).step_by(BLOCK);
            starts.map(move |start| Block { head, start, end: (start + BLOCK).min(length) })
        })
    }

    fn mix(&self, output: &mut [f32]) {
        let mut weights = Vec::new();
        for block in self.blocks() {
            self.weights(block, &mut weights);
            let weights = Matrix::rows(&weights, block.end);
            let values = self.key_side(self.value, block);
            product(&mut self.query_side_mut(output, block), Write::Replace, 1.0, weights, values);
        }
    }

    /// With `P` the weights and `O = P V`: `dV = P' dO`, and the scores' gradient is
    /// `dS = P * (dO V' - rowsum(dO * O))` (Dao et al., *`FlashAttention`*, 2022, appendix B.2).
    fn pull(&self, above: Above<'_>, pulled: &mut Pulled<'_>) {
        let (mut weights, mut dscores) = (Vec::new(), Vec::new());
        for block in self.blocks() {
            self.weights(block, &mut weights);
            let gradient = self.query_side(above.gradient, block);
            let weights_matrix = Matrix::rows(&weights, block.end);
            let mut dvalue = self.key_side_mut(pulled.dvalue, block);
            product(&mut dvalue, Write::Add, 1.0, weights_matrix.transposed(), gradient);

            dscores.clear();
            dscores.resize(weights.len(), 0.0);
            let values = self.key_side(self.value, block).transposed();
            let mut target = MatrixMut::rows(&mut dscores, block.end);
            product(&mut target, Write::Replace, 1.0, gradient, values);
            let rows = dscores.chunks_exact_mut(block.end).zip(weights.chunks_exact(block.end));
            for (i, (dscores, weights)) in rows.enumerate() {
                let token = block.start + i;
                let mean = math::dot(
                    self.head(above.gradient, token, block.head),
                    self.head(above.mixed, token, block.head),
                );
                for (dscore, weight) in dscores.iter_mut().zip(weights) {
                    *dscore = weight * (*dscore - mean);
                }
            }

            let (scale, dscores) = (self.heads.scale(), Matrix::rows(&dscores, block.end));
            let mut dquery = self.query_side_mut(pulled.dquery, block);
            product(&mut dquery, Write::Replace, scale, dscores, self.key_side(self.key, block));
            let mut dkey = self.key_side_mut(pulled.dkey, block);
            let queries = self.query_side(self.query, block);
            product(&mut dkey, Write::Add, scale, dscores.transposed(), queries);
        }
    }

    /// Softmax of the scores, 0 where a query may not look. `[queries, end]`
    fn weights(&self, block: Block, weights: &mut Vec<f32>) {
        let count = block.end - block.start;
        weights.clear();
        weights.resize(count * block.end, 0.0);
        let mut scores = MatrixMut::rows(weights, block.end);
        let keys = self.key_side(self.key, block).transposed();
        let queries = self.query_side(self.query, block);
        product(&mut scores, Write::Replace, self.heads.scale(), queries, keys);
        for (i, row) in weights.chunks_exact_mut(block.end).enumerate() {
            let (seen, unseen) = row.split_at_mut(block.start + i + 1);
            math::softmax(seen);
            unseen.fill(0.0);
        }
    }

    fn head<'a>(&self, x: &'a [f32], token: usize, head: usize) -> &'a [f32] {
        let Heads { n_heads, head_dim, .. } = self.heads;
        &x[(token * n_heads + head) * head_dim..][..head_dim]
    }

    /// The block's head in its tokens. `[queries, head_dim]`
    fn query_side<'a>(&self, x: &'a [f32], block: Block) -> Matrix<'a> {
        let (offset, width) = self.query_place(block);
        Matrix::strided(&x[offset..], block.end - block.start, self.heads.head_dim, width)
    }

    fn query_side_mut<'a>(&self, x: &'a mut [f32], block: Block) -> MatrixMut<'a> {
        let (offset, width) = self.query_place(block);
        MatrixMut::strided(&mut x[offset..], block.end - block.start, self.heads.head_dim, width)
    }

    fn query_place(&self, block: Block) -> (usize, usize) {
        let width = self.heads.n_heads * self.heads.head_dim;
        (block.start * width + block.head * self.heads.head_dim, width)
    }

    /// The key head of the block's head in all tokens before its end. `[end, head_dim]`
    fn key_side<'a>(&self, x: &'a [f32], block: Block) -> Matrix<'a> {
        let (offset, width) = self.key_place(block);
        Matrix::strided(&x[offset..], block.end, self.heads.head_dim, width)
    }

    fn key_side_mut<'a>(&self, x: &'a mut [f32], block: Block) -> MatrixMut<'a> {
        let (offset, width) = self.key_place(block);
        MatrixMut::strided(&mut x[offset..], block.end, self.heads.head_dim, width)
    }

    fn key_place(&self, block: Block) -> (usize, usize) {
        let Heads { n_kv_heads, head_dim, .. } = self.heads;
        (block.head / self.heads.group() * head_dim, n_kv_heads * head_dim)
    }
}

/// Sequences are what runs side by side, so each product is one thread's.
fn product(target: &mut MatrixMut<'_>, write: Write, scale: f32, a: Matrix<'_>, b: Matrix<'_>) {
    multiply(target, write, scale, a, b, Threads::One);
}
