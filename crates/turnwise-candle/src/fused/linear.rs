//! Products with weights: `[N, in]` times the transpose of `[out, in]`.

use turnwise_kernels::math;
use turnwise_kernels::matrix::{
    Accuracy, Along, Matrix, MatrixMut, Parallelism, Write, add_to_each, multiply, multiply_joined,
};

/// Some columns of rows that are `stride` wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ColumnRange {
    pub(crate) start: usize,
    pub(crate) count: usize,
    pub(crate) stride: usize,
}

impl ColumnRange {
    fn of<'a>(&self, rows: &'a [f32]) -> Matrix<'a> {
        let n = rows.len() / self.stride;
        Matrix::strided(&rows[self.start..], n, self.count, self.stride)
    }

    fn of_mut<'a>(&self, rows: &'a mut [f32]) -> MatrixMut<'a> {
        let n = rows.len() / self.stride;
        MatrixMut::strided(&mut rows[self.start..], n, self.count, self.stride)
    }
}

/// Computes `y = scale * x weight'`, or adds it, in some columns of `y`.
pub(crate) fn forward(
    y: &mut [f32],
    columns: ColumnRange,
    write: Write,
    x: &[f32],
    weight: &[f32],
    scale: f32,
    accuracy: Accuracy,
) {
    let width = weight.len() / columns.count;
    let (x, weight) = (Matrix::rows(x, width), Matrix::rows(weight, width));
    let mut y = columns.of_mut(y);
    let sides = [x, weight.transposed()];
    multiply(&mut y, write, scale, sides, accuracy, Parallelism::Pool);
}

/// Computes the gradient of `x`.
pub(crate) fn backward_x(
    dx: &mut [f32],
    write: Write,
    dy: &[f32],
    columns: ColumnRange,
    weight: &[f32],
    scale: f32,
    accuracy: Accuracy,
) {
    let width = weight.len() / columns.count;
    let mut dx = MatrixMut::rows(dx, width);
    let sides = [columns.of(dy), Matrix::rows(weight, width)];
    multiply(&mut dx, write, scale, sides, accuracy, Parallelism::Pool);
}

/// Adds the gradient of `weight`.
pub(crate) fn backward_weight(
    dweight: &mut [f32],
    dy: &[f32],
    columns: ColumnRange,
    x: &[f32],
    scale: f32,
    accuracy: Accuracy,
) {
    let width = dweight.len() / columns.count;
    let mut dweight = MatrixMut::rows(dweight, width);
    let sides = [columns.of(dy).transposed(), Matrix::rows(x, width)];
    multiply(&mut dweight, Write::Add, scale, sides, accuracy, Parallelism::Pool);
}

/// Computes `y = x weights'`, or adds it, side by side from the first column on. Rows are `stride` wide.
pub(crate) fn forward_joined(
    y: &mut [f32],
    stride: usize,
    write: Write,
    x: &[f32],
    width: usize,
    weights: &[&[f32]],
    accuracy: Accuracy,
) {
    let matrices: Vec<Matrix<'_>> =
        weights.iter().map(|weight| Matrix::rows(weight, width).transposed()).collect();
    let columns = weights.iter().map(|weight| weight.len() / width).sum();
    let mut y = MatrixMut::strided(y, x.len() / width, columns, stride);
    let x = Matrix::rows(x, width);
    multiply_joined(&mut y, write, x, &matrices, Along::Columns, accuracy);
}

/// Computes the gradient of `x` through all weights.
pub(crate) fn backward_x_joined(
    dx: &mut [f32],
    write: Write,
    dy: &[f32],
    stride: usize,
    width: usize,
    weights: &[&[f32]],
    accuracy: Accuracy,
) {
    let matrices: Vec<Matrix<'_>> =
        weights.iter().map(|weight| Matrix::rows(weight, width)).collect();
    let columns = weights.iter().map(|weight| weight.len() / width).sum();
    let dy = Matrix::strided(dy, dy.len() / stride, columns, stride);
    let mut dx = MatrixMut::rows(dx, width);
    multiply_joined(&mut dx, write, dy, &matrices, Along::Terms, accuracy);
}

/// Adds the gradients of adjacent weights, from the first one's columns on.
pub(crate) fn backward_weights(
    dweights: &mut [&mut [f32]],
    dy: &[f32],
    first: ColumnRange,
    x: &[f32],
    width: usize,
    accuracy: Accuracy,
) {
    let count = dweights.iter().map(|dweight| dweight.len() / width).sum();
    let dy = ColumnRange { count, ..first }.of(dy).transposed();
    let mut targets: Vec<MatrixMut<'_>> =
        dweights.iter_mut().map(|dweight| MatrixMut::rows(dweight, width)).collect();
    add_to_each(&mut targets, [dy, Matrix::rows(x, width)], accuracy);
}

/// Adds a bias to every row.
pub(crate) fn add_bias(y: &mut [f32], columns: ColumnRange, bias: &[f32]) {
    for row in y.chunks_exact_mut(columns.stride) {
        math::add_scaled(&mut row[columns.start..][..columns.count], 1.0, bias);
    }
}

/// Adds the gradient of a bias.
pub(crate) fn backward_bias(dbias: &mut [f32], dy: &[f32], columns: ColumnRange) {
    for row in dy.chunks_exact(columns.stride) {
        math::add_scaled(dbias, 1.0, &row[columns.start..][..columns.count]);
    }
}
