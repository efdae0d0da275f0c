//! RMSNorm: `y = x / sqrt(mean(x^2) + eps) * gain` (Zhang and Sennrich, *Root mean square layer normalization*, 2019,
//! equation 4), for every row of `x`. `[N, D]`

use rayon::prelude::*;
use turnwise_kernels::math;
use turnwise_kernels::matrix::Write;
use turnwise_kernels::vectorized;

use super::PIECE_ROWS;

pub(crate) fn forward(y: &mut [f32], x: &[f32], gain: &[f32], eps: f32) {
    let piece = PIECE_ROWS * gain.len();
    let pieces = y.par_chunks_mut(piece).zip(x.par_chunks(piece));
    pieces.for_each(|(y, x)| norm_rows(y, x, gain, eps));
}

/// Writes the gradient of `x` to `dx` and returns the gradient of the gain.
pub(crate) fn backward(
    dx: &mut [f32],
    write: Write,
    x: &[f32],
    gain: &[f32],
    dy: &[f32],
    eps: f32,
) -> Vec<f32> {
    let width = gain.len();
    let piece = PIECE_ROWS * width;
    let pieces = dx.par_chunks_mut(piece).zip(x.par_chunks(piece)).zip(dy.par_chunks(piece));
    let parts: Vec<Vec<f32>> = pieces
        .map(|((dx, x), dy)| {
            let mut dgain = vec![0.0; width];
            pull_rows(dx, &mut dgain, write == Write::Add, x, gain, dy, eps);
            dgain
        })
        .collect();
    let mut dgain = vec![0.0; width];
    for part in parts {
        math::add_scaled(&mut dgain, 1.0, &part);
    }
    dgain
}

vectorized! {
    fn norm_rows(y: &mut [f32], x: &[f32], gain: &[f32], eps: f32) {
        let width = gain.len();
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            math::rms_norm(y, x, gain, eps);
        }
    }

    fn pull_rows(
        dx: &mut [f32],
        dgain: &mut [f32],
        add: bool,
        x: &[f32],
        gain: &[f32],
        dy: &[f32],
        eps: f32,
    ) {
        let width = gain.len();
        let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width));
        for ((dx, x), dy) in rows.zip(dy.chunks_exact(width)) {
            pull_row(dx, dgain, add, x, gain, dy, eps);
        }
    }
}

/// Computes the backward pass of one row. Adds to `dgain`, and also to `dx` if `add`.
#[inline(always)]
#[allow(clippy::inline_always, reason = "it takes on the width of its caller")]
pub(super) fn pull_row(
    dx: &mut [f32],
    dgain: &mut [f32],
    add: bool,
    x: &[f32],
    gain: &[f32],
    dy: &[f32],
    eps: f32,
) {
    let factor = math::inverse_rms(x, eps);
    // With r the reciprocal root mean square: dr/dx is -r^3 x / width.
    let along = math::dot3(dy, gain, x) * factor * factor * factor / x.len() as f32;
    let columns = dx.iter_mut().zip(dgain).zip(x.iter().zip(gain).zip(dy));
    for ((dx, dgain), ((x, gain), dy)) in columns {
        *dgain += dy * x * factor;
        let change = dy * gain * factor - x * along;
        *dx = if add { *dx + change } else { change };
    }
}
