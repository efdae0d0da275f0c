use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::math;
use crate::numbers::{like, numbers, stored, stored_numbers};

/// Numbers that one thread takes at a time. Fixed, so that sums over tokens do not depend on the number of threads.
const PIECE: usize = 8192;

/// `y = x / sqrt(mean(x^2) + eps) * gain` for every piece of `x` as wide as `gain` (Zhang and Sennrich, *Root mean square
/// layer normalization*, 2019, equation 4).
pub(crate) fn rms_norm(x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
    x.apply_op2(gain, RmsNorm { eps: eps as f32 })
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gain: &CpuStorage,
        gain_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, gain) = (stored_numbers(x, x_layout)?, stored_numbers(gain, gain_layout)?);
        let width = gain.len();
        let mut y = vec![0.0; x.len()];
        let piece = piece(width);
        y.par_chunks_mut(piece).zip(x.par_chunks(piece)).for_each(|(y, x)| {
            for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                math::rms_norm(y, x, gain, self.eps);
            }
        });
        Ok(stored(y, x_layout.shape()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gain: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let (dx, dgain) = self.gradients(&numbers(x)?, &numbers(gain)?, &numbers(&gradient)?);
        Ok((Some(like(dx, x)?), Some(like(dgain, gain)?)))
    }
}

impl RmsNorm {
    fn gradients(&self, x: &[f32], gain: &[f32], gradient: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let width = gain.len();
        let piece = piece(width);
        let mut dx = vec![0.0; x.len()];
        let rows =
            dx.par_chunks_mut(piece).zip(x.par_chunks(piece)).zip(gradient.par_chunks(piece));
        let parts: Vec<Vec<f32>> = rows
            .map(|((dx, x), gradient)| {
                let (mut dgain, mut pulled) = (vec![0.0; width], vec![0.0; width]);
                let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width));
                for ((dx, x), gradient) in rows.zip(gradient.chunks_exact(width)) {
                    let factor = math::inverse_rms(x, self.eps);
                    for i in 0..width {
                        dgain[i] += gradient[i] * x[i] * factor;
                        pulled[i] = gradient[i] * gain[i];
                    }
                    // d/dx of x r(x): r moves against x by r^3 / width.
                    let along = math::dot(&pulled, x) * factor * factor * factor / width as f32;
                    for i in 0..width {
                        dx[i] = pulled[i] * factor - x[i] * along;
                    }
                }
                dgain
            })
            .collect();
        let mut dgain = vec![0.0; width];
        for part in parts {
            math::add_scaled(&mut dgain, 1.0, &part);
        }
        (dx, dgain)
    }
}

fn piece(width: usize) -> usize {
    PIECE.div_ceil(width) * width
}
