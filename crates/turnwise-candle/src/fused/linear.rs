use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use crate::matrix::{Matrix, MatrixMut, Threads, Write, multiply};
use crate::numbers::{like, numbers, stored, stored_numbers};

/// `x` times the transpose of `weight`: `[N, in]` and `[out, in]` to `[N, out]`.
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.apply_op2(weight, Linear)
}

struct Linear;

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, width) = x_layout.shape().dims2()?;
        let (out, _) = weight_layout.shape().dims2()?;
        let x = Matrix::rows(stored_numbers(x, x_layout)?, width);
        let weight = Matrix::rows(stored_numbers(weight, weight_layout)?, width);
        let mut y = vec![0.0; n * out];
        product(&mut y, out, x, weight.transposed());
        Ok(stored(y, (n, out)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (out, width) = weight.dims2()?;
        let (mut dx, mut dweight) = (vec![0.0; x.elem_count()], vec![0.0; weight.elem_count()]);
        let gradient = gradient.contiguous()?;
        let (gradient, x_numbers, weight_numbers) =
            (numbers(&gradient)?, numbers(x)?, numbers(weight)?);
        let gradient = Matrix::rows(&gradient, out);
        product(&mut dx, width, gradient, Matrix::rows(&weight_numbers, width));
        product(&mut dweight, width, gradient.transposed(), Matrix::rows(&x_numbers, width));
        Ok((Some(like(dx, x)?), Some(like(dweight, weight)?)))
    }
}

fn product(target: &mut [f32], columns: usize, a: Matrix<'_>, b: Matrix<'_>) {
    multiply(&mut MatrixMut::rows(target, columns), Write::Replace, 1.0, a, b, Threads::Pool);
}
