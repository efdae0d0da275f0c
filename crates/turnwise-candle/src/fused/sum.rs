//! Sums over many numbers.

use rayon::prelude::*;
use turnwise_kernels::math;
use turnwise_kernels::vectorized;

/// The numbers that one thread takes at a time.
const PIECE: usize = 1 << 15;

/// Computes `target += x`.
pub(crate) fn add(target: &mut [f32], x: &[f32]) {
    target.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(target, x)| piece(target, x));
}

/// Computes `x *= factor`.
pub(crate) fn scale(x: &mut [f32], factor: f32) {
    x.par_chunks_mut(PIECE).for_each(|x| scale_piece(x, factor));
}

/// Returns the sum of squares. Pieces are added in order, so that it does not depend on the number of threads.
pub(crate) fn squares(x: &[f32]) -> f64 {
    let pieces: Vec<f64> = x.par_chunks(PIECE).map(piece_squares).collect();
    pieces.iter().sum()
}

vectorized! {
    fn piece_squares(x: &[f32]) -> f64 {
        let mut lanes = [0.0_f64; 8];
        let (whole, rest) = x.as_chunks::<8>();
        for x in whole {
            for i in 0..8 {
                lanes[i] += f64::from(x[i]) * f64::from(x[i]);
            }
        }
        let rest: f64 = rest.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        lanes.iter().sum::<f64>() + rest
    }

    fn scale_piece(x: &mut [f32], factor: f32) {
        for x in x {
            *x *= factor;
        }
    }

    fn piece(target: &mut [f32], x: &[f32]) {
        math::add_scaled(target, 1.0, x);
    }
}
