//! Gates of feed-forward halves: `activation(gate) * up` (Shazeer, *GLU variants improve transformer*, 2020, section 2).
//! Gate and up are side by side: `[N, 2 I]` to `[N, I]`.

use rayon::prelude::*;
use turnwise_kernels::math;
use turnwise_kernels::vectorized;

use super::PIECE_ROWS;
use crate::architecture::Activation;

pub(crate) fn forward(y: &mut [f32], gate_up: &[f32], width: usize, activation: Activation) {
    let piece = PIECE_ROWS * width;
    let pieces = y.par_chunks_mut(piece).zip(gate_up.par_chunks(2 * piece));
    let rows = match activation {
        Activation::Silu => silu_rows,
        Activation::GeluTanh => gelu_rows,
    };
    pieces.for_each(|(y, gate_up)| rows(y, gate_up, width));
}

/// Computes the gradient of gate and up. `[N, 2 I]`
pub(crate) fn backward(
    dgate_up: &mut [f32],
    gate_up: &[f32],
    dy: &[f32],
    width: usize,
    activation: Activation,
) {
    let piece = PIECE_ROWS * width;
    let pieces = dgate_up.par_chunks_mut(2 * piece).zip(gate_up.par_chunks(2 * piece));
    let pull = match activation {
        Activation::Silu => pull_silu_rows,
        Activation::GeluTanh => pull_gelu_rows,
    };
    pieces
        .zip(dy.par_chunks(piece))
        .for_each(|((dgate_up, gate_up), dy)| pull(dgate_up, gate_up, dy, width));
}

/// Applies a gate to rows.
#[inline(always)]
#[allow(clippy::inline_always, reason = "it takes on the width of its caller")]
fn gate_rows(y: &mut [f32], gate_up: &[f32], width: usize, activation: impl Fn(f32) -> f32) {
    for (y, gate_up) in y.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
        let (gate, up) = gate_up.split_at(width);
        for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            *y = activation(*gate) * up;
        }
    }
}

/// Computes the backward pass of rows. `change` returns the gradients of gate and up from the gate, up and the output
/// gradient.
#[inline(always)]
#[allow(clippy::inline_always, reason = "it takes on the width of its caller")]
fn pull_rows(
    dgate_up: &mut [f32],
    gate_up: &[f32],
    dy: &[f32],
    width: usize,
    change: impl Fn(f32, f32, f32) -> (f32, f32),
) {
    let rows = dgate_up.chunks_exact_mut(2 * width).zip(gate_up.chunks_exact(2 * width));
    for ((dgate_up, gate_up), dy) in rows.zip(dy.chunks_exact(width)) {
        let (gate, up) = gate_up.split_at(width);
        let (dgate, dup) = dgate_up.split_at_mut(width);
        let outputs = dgate.iter_mut().zip(dup);
        for ((dgate, dup), ((gate, up), dy)) in outputs.zip(gate.iter().zip(up).zip(dy)) {
            (*dgate, *dup) = change(*gate, *up, *dy);
        }
    }
}

vectorized! {
    fn silu_rows(y: &mut [f32], gate_up: &[f32], width: usize) {
        gate_rows(y, gate_up, width, math::silu);
    }

    fn gelu_rows(y: &mut [f32], gate_up: &[f32], width: usize) {
        gate_rows(y, gate_up, width, math::gelu_tanh);
    }

    fn pull_silu_rows(dgate_up: &mut [f32], gate_up: &[f32], dy: &[f32], width: usize) {
        pull_rows(dgate_up, gate_up, dy, width, |gate, up, dy| {
            let sigmoid = 1.0 / (1.0 + math::exp(-gate));
            (dy * up * sigmoid * (1.0 + gate * (1.0 - sigmoid)), dy * gate * sigmoid)
        });
    }

    fn pull_gelu_rows(dgate_up: &mut [f32], gate_up: &[f32], dy: &[f32], width: usize) {
        pull_rows(dgate_up, gate_up, dy, width, |gate, up, dy| {
            let (value, slope) = math::gelu_tanh_slope(gate);
            (dy * up * slope, dy * value)
        });
    }
}
