//! SwiGLU: `silu(gate) * up` (Shazeer, *GLU variants improve transformer*, 2020, equation 5). Gate and up are side by
//! side: `[N, 2 I]` to `[N, I]`.

use rayon::prelude::*;
use turnwise_kernels::math;
use turnwise_kernels::vectorized;

use super::PIECE_ROWS;

pub(crate) fn forward(y: &mut [f32], gate_up: &[f32], width: usize) {
    let piece = PIECE_ROWS * width;
    let pieces = y.par_chunks_mut(piece).zip(gate_up.par_chunks(2 * piece));
    pieces.for_each(|(y, gate_up)| gate_rows(y, gate_up, width));
}

/// Computes the gradient of gate and up. `[N, 2 I]`
pub(crate) fn backward(dgate_up: &mut [f32], gate_up: &[f32], dy: &[f32], width: usize) {
    let piece = PIECE_ROWS * width;
    let pieces = dgate_up.par_chunks_mut(2 * piece).zip(gate_up.par_chunks(2 * piece));
    pieces
        .zip(dy.par_chunks(piece))
        .for_each(|((dgate_up, gate_up), dy)| pull_rows(dgate_up, gate_up, dy, width));
}

vectorized! {
    fn gate_rows(y: &mut [f32], gate_up: &[f32], width: usize) {
        for (y, gate_up) in y.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
            let (gate, up) = gate_up.split_at(width);
            for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                *y = math::silu(*gate) * up;
            }
        }
    }

    fn pull_rows(dgate_up: &mut [f32], gate_up: &[f32], dy: &[f32], width: usize) {
        let rows = dgate_up.chunks_exact_mut(2 * width).zip(gate_up.chunks_exact(2 * width));
        for ((dgate_up, gate_up), dy) in rows.zip(dy.chunks_exact(width)) {
            let (gate, up) = gate_up.split_at(width);
            let (dgate, dup) = dgate_up.split_at_mut(width);
            let outputs = dgate.iter_mut().zip(dup);
            for ((dgate, dup), ((gate, up), dy)) in outputs.zip(gate.iter().zip(up).zip(dy)) {
                let sigmoid = 1.0 / (1.0 + math::exp(-gate));
                *dup = dy * gate * sigmoid;
                *dgate = dy * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
            }
        }
    }
}
