use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::matrix::{Matrix, MatrixMut, Threads, Write, multiply};
use crate::numbers::{like, numbers, stored, stored_numbers};
use crate::routing::Routing;

/// Each row times the transpose of its expert's matrix: `[M, in]` and `[E, out, in]` to `[M, out]`. An expert without rows
/// costs nothing, and its gradient is zero.
pub(crate) fn grouped(x: &Tensor, weight: &Tensor, routing: &Arc<Routing>) -> Result<Tensor> {
    x.apply_op2(weight, Grouped { routing: routing.clone() })
}

struct Grouped {
    routing: Arc<Routing>,
}

impl Grouped {
    /// The rows of each expert.
    fn cut<'a>(&self, x: &'a [f32], width: usize) -> Vec<&'a [f32]> {
        let starts = self.routing.starts.windows(2);
        starts.map(|pair| &x[pair[0] * width..pair[1] * width]).collect()
    }

    fn cut_mut<'a>(&self, mut x: &'a mut [f32], width: usize) -> Vec<&'a mut [f32]> {
        let counts = self.routing.counts();
        counts
            .map(|count| x.split_off_mut(..count * width).expect("starts end with the rows"))
            .collect()
    }
}

impl CustomOp2 for Grouped {
    fn name(&self) -> &'static str {
        "grouped-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (m, _) = x_layout.shape().dims2()?;
        let (_, out, width) = weight_layout.shape().dims3()?;
        let weights = stored_numbers(weight, weight_layout)?.par_chunks_exact(out * width);
        let mut y = vec![0.0; m * out];
        let rows = self.cut(stored_numbers(x, x_layout)?, width).into_par_iter();
        let outputs = self.cut_mut(&mut y, out).into_par_iter();
        outputs.zip(rows).zip(weights).for_each(|((y, x), weight)| {
            product(y, out, Matrix::rows(x, width), Matrix::rows(weight, width).transposed());
        });
        Ok(stored(y, (m, out)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (_, out, width) = weight.dims3()?;
        let (mut dx, mut dweight) = (vec![0.0; x.elem_count()], vec![0.0; weight.elem_count()]);
        let gradient = gradient.contiguous()?;
        let (gradient, x_numbers, weight_numbers) =
            (numbers(&gradient)?, numbers(x)?, numbers(weight)?);
        let above = self.cut(&gradient, out).into_par_iter().zip(self.cut(&x_numbers, width));
        let inputs = above.zip(weight_numbers.par_chunks_exact(out * width));
        let outputs = self.cut_mut(&mut dx, width).into_par_iter();
        let outputs = outputs.zip(dweight.par_chunks_exact_mut(out * width));
        outputs.zip(inputs).for_each(|((dx, dweight), ((gradient, x), weight))| {
            let gradient = Matrix::rows(gradient, out);
            product(dx, width, gradient, Matrix::rows(weight, width));
            if !dx.is_empty() {
                product(dweight, width, gradient.transposed(), Matrix::rows(x, width));
            }
        });
        Ok((Some(like(dx, x)?), Some(like(dweight, weight)?)))
    }
}

fn product(target: &mut [f32], columns: usize, a: Matrix<'_>, b: Matrix<'_>) {
    if !target.is_empty() {
        multiply(&mut MatrixMut::rows(target, columns), Write::Replace, 1.0, a, b, Threads::One);
    }
}
