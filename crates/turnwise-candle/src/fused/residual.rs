//! Rows times the sigmoid of a number for each, added to the residual stream: `y = onto + sigmoid(gate) x`. `[N, D]`,
//! and `[N]` for the gate.

use rayon::prelude::*;
use turnwise_kernels::math;

/// The rows that one thread takes at least.
const ROWS: usize = 16;

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + math::exp(-x))
}

/// Adds to `y`, which holds `onto`.
pub(crate) fn forward(y: &mut [f32], x: &[f32], gate: &[f32]) {
    let width = x.len() / gate.len().max(1);
    let rows = y.par_chunks_exact_mut(width).zip(x.par_chunks_exact(width)).zip(gate);
    rows.with_min_len(ROWS).for_each(|((y, x), gate)| math::add_scaled(y, sigmoid(*gate), x));
}

/// Writes the gradient of `x`, and that of the gate.
pub(crate) fn backward(dx: &mut [f32], dgate: &mut [f32], x: &[f32], gate: &[f32], dy: &[f32]) {
    let width = x.len() / gate.len().max(1);
    let rows = dx.par_chunks_exact_mut(width).zip(dgate).zip(x.par_chunks_exact(width));
    let rows = rows.zip(gate).zip(dy.par_chunks_exact(width));
    rows.with_min_len(ROWS).for_each(|((((dx, dgate), x), gate), dy)| {
        let share = sigmoid(*gate);
        *dgate = math::dot(dy, x) * share * (1.0 - share);
        dx.fill(0.0);
        math::add_scaled(dx, share, dy);
    });
}
