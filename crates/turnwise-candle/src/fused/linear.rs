use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use crate::math::add_scaled;
use crate::matrix::{Matrix, MatrixMut, Threads, Write, multiply};
use crate::numbers::{like, numbers, stored, stored_numbers};

/// `x` times the transpose of `weight`: `[N, in]` and `[out, in]` to `[N, out]`.
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.apply_op2(weight, Linear)
}

/// The same with `bias`, `[out]`, added to every row.
pub(crate) fn affine(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.apply_op3(weight, bias, Affine)
}

struct Linear;

struct Affine;

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
        product(&mut y, out, Write::Replace, x, weight.transposed());
        Ok(stored(y, (n, out)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dweight) = gradients(x, weight, &gradient.contiguous()?)?;
        Ok((Some(dx), Some(dweight)))
    }
}

impl CustomOp3 for Affine {
    fn name(&self) -> &'static str {
        "affine"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, width) = x_layout.shape().dims2()?;
        let bias = stored_numbers(bias, bias_layout)?;
        let x = Matrix::rows(stored_numbers(x, x_layout)?, width);
        let weight = Matrix::rows(stored_numbers(weight, weight_layout)?, width);
        let mut y = bias.repeat(n);
        product(&mut y, bias.len(), Write::Add, x, weight.transposed());
        Ok(stored(y, (n, bias.len())))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let (dx, dweight) = gradients(x, weight, &gradient)?;
        let mut dbias = vec![0.0; bias.elem_count()];
        let width = dbias.len();
        for row in numbers(&gradient)?.chunks_exact(width) {
            add_scaled(&mut dbias, 1.0, row);
        }
        Ok((Some(dx), Some(dweight), Some(like(dbias, bias)?)))
    }
}

/// Of `x` and of `weight`.
fn gradients(x: &Tensor, weight: &Tensor, gradient: &Tensor) -> Result<(Tensor, Tensor)> {
    let (out, width) = weight.dims2()?;
    let (mut dx, mut dweight) = (vec![0.0; x.elem_count()], vec![0.0; weight.elem_count()]);
    let (gradient, x_numbers, weight_numbers) = (numbers(gradient)?, numbers(x)?, numbers(weight)?);
    let gradient = Matrix::rows(&gradient, out);
    product(&mut dx, width, Write::Replace, gradient, Matrix::rows(&weight_numbers, width));
    let x_rows = Matrix::rows(&x_numbers, width);
    product(&mut dweight, width, Write::Replace, gradient.transposed(), x_rows);
    Ok((like(dx, x)?, like(dweight, weight)?))
}

fn product(target: &mut [f32], columns: usize, write: Write, a: Matrix<'_>, b: Matrix<'_>) {
    multiply(&mut MatrixMut::rows(target, columns), write, 1.0, a, b, Threads::Pool);
}
