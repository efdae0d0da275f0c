use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::batch::Batch;
use crate::math;
use crate::matrix::{Matrix, MatrixMut, Threads, Write, multiply};
use crate::numbers::{like, numbers, stored, stored_numbers};

/// Targets whose logits are held at once.
const CHUNK: usize = 512;

/// The log-probability of each target under `softmax(hidden head' * scale)`: `[M, D]` and `[V, D]` to `[M]`, without
/// ever holding `[M, V]`.
pub(crate) fn logprobs(hidden: &Tensor, head: &Tensor, batch: &Batch) -> Result<Tensor> {
    let (targets, scales) = (batch.targets.clone(), batch.scales.clone());
    hidden.apply_op2(head, LogProb { targets, scales })
}

struct LogProb {
    targets: Arc<[u32]>,
    scales: Arc<[f32]>,
}

/// Some targets and what they are computed from.
struct Chunk<'a> {
    hidden: Matrix<'a>,
    targets: &'a [u32],
    scales: &'a [f32],
}

impl LogProb {
    fn chunks<'a>(&'a self, hidden: &'a [f32], width: usize) -> impl Iterator<Item = Chunk<'a>> {
        let rows = hidden.chunks(CHUNK * width).map(move |rows| Matrix::rows(rows, width));
        let targets = self.targets.chunks(CHUNK).zip(self.scales.chunks(CHUNK));
        rows.zip(targets).map(|(hidden, (targets, scales))| Chunk { hidden, targets, scales })
    }
}

impl Chunk<'_> {
    /// Fills `logits` with the scaled logits. `[targets, V]`
    fn logits(&self, head: Matrix<'_>, vocab_size: usize, logits: &mut Vec<f32>) {
        logits.resize(self.targets.len() * vocab_size, 0.0);
        product(logits, vocab_size, Write::Replace, self.hidden, head.transposed());
        logits.par_chunks_exact_mut(vocab_size).zip(self.scales).for_each(|(row, scale)| {
            for logit in row {
                *logit *= scale;
            }
        });
    }
}

impl CustomOp2 for LogProb {
    fn name(&self) -> &'static str {
        "log-probability"
    }

    fn cpu_fwd(
        &self,
        hidden: &CpuStorage,
        hidden_layout: &Layout,
        head: &CpuStorage,
        head_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (vocab_size, width) = head_layout.shape().dims2()?;
        let head = Matrix::rows(stored_numbers(head, head_layout)?, width);
        let (mut logits, mut result) = (Vec::new(), Vec::with_capacity(self.targets.len()));
        for chunk in self.chunks(stored_numbers(hidden, hidden_layout)?, width) {
            chunk.logits(head, vocab_size, &mut logits);
            let rows = logits.par_chunks_exact_mut(vocab_size).zip(chunk.targets);
            let logprobs = rows.map(|(row, target)| {
                let (highest, own) = (math::maximum(row), row[*target as usize]);
                (f64::from(own - highest) - f64::from(math::exponentials(row, highest)).ln()) as f32
            });
            result.par_extend(logprobs);
        }
        Ok(stored(result, self.targets.len()))
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        head: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (vocab_size, width) = head.dims2()?;
        let (mut dhidden, mut dhead) =
            (vec![0.0; hidden.elem_count()], vec![0.0; head.elem_count()]);
        let gradient = gradient.contiguous()?;
        let (gradient, hidden_numbers, head_numbers) =
            (numbers(&gradient)?, numbers(hidden)?, numbers(head)?);
        let head_matrix = Matrix::rows(&head_numbers, width);
        let mut logits = Vec::new();
        let outputs = dhidden.chunks_mut(CHUNK * width).zip(gradient.chunks(CHUNK));
        for (chunk, (dhidden, gradient)) in self.chunks(&hidden_numbers, width).zip(outputs) {
            chunk.logits(head_matrix, vocab_size, &mut logits);
            let rows = logits.par_chunks_exact_mut(vocab_size).zip(chunk.targets);
            rows.zip(chunk.scales).zip(gradient).for_each(|(((row, target), scale), gradient)| {
                // d logprob / d logit = (1 at the target, 0 elsewhere) - probability.
                math::softmax(row);
                let factor = -gradient * scale;
                for logit in row.iter_mut() {
                    *logit *= factor;
                }
                row[*target as usize] -= factor;
            });
            let dlogits = Matrix::rows(&logits, vocab_size);
            product(dhidden, width, Write::Replace, dlogits, head_matrix);
            product(&mut dhead, width, Write::Add, dlogits.transposed(), chunk.hidden);
        }
        Ok((Some(like(dhidden, hidden)?), Some(like(dhead, head)?)))
    }
}

fn product(target: &mut [f32], columns: usize, write: Write, a: Matrix<'_>, b: Matrix<'_>) {
    multiply(&mut MatrixMut::rows(target, columns), write, 1.0, a, b, Threads::Pool);
}
