//! Products of small matrices that fit in caches, on one thread; only the matrix unit and bf16 need packing.

use crate::matrix::{self, Accuracy, Matrix, MatrixMut, Parallelism, Write};
use crate::number_tile::{self, NumberFactors};
use crate::tile::{LANES, MAX_TILE, MAX_VECTORS, TileTarget};

/// A left factor: term `k` of row `r` is at `r * stride + k * step`.
#[derive(Clone, Copy, Debug)]
pub struct LeftFactor<'a> {
    /// The numbers of the factor.
    pub data: &'a [f32],
    /// Distance between rows.
    pub stride: usize,
    /// Distance between terms.
    pub step: usize,
    /// The number of rows.
    pub rows: usize,
    /// The terms of each sum.
    pub terms: usize,
}

impl<'a> LeftFactor<'a> {
    /// Returns the factor as a matrix.
    #[must_use]
    pub fn matrix(&self) -> Matrix<'a> {
        Matrix::stepped(self.data, [self.rows, self.terms], [self.stride, self.step])
    }
}

/// A right factor: rows of `columns` numbers, `stride` apart. Products read whole vectors of each row, so the slice may
/// need up to eight vectors after the last row.
#[derive(Clone, Copy, Debug)]
pub struct RightFactor<'a> {
    /// The numbers of the factor.
    pub data: &'a [f32],
    /// Distance between rows.
    pub stride: usize,
    /// The number of columns.
    pub columns: usize,
}

/// Computes `target = left right`, or `target += left right`; rows of the target are `stride` apart.
///
/// # Panics
/// When a factor or the target reaches beyond its slice.
pub fn multiply(
    target: &mut [f32],
    stride: usize,
    write: Write,
    left: LeftFactor<'_>,
    right: RightFactor<'_>,
    accuracy: Accuracy,
) {
    if matrix::packing_pays(left.rows, left.terms, right.columns, accuracy) {
        let mut target = MatrixMut::strided(target, left.rows, right.columns, stride);
        let right = Matrix::strided(right.data, left.terms, right.columns, right.stride);
        let sides = [left.matrix(), right];
        return matrix::multiply(&mut target, write, 1.0, sides, accuracy, Parallelism::Serial);
    }
    by_tiles(target, stride, write, left, right);
}

fn by_tiles(
    target: &mut [f32],
    stride: usize,
    write: Write,
    left: LeftFactor<'_>,
    right: RightFactor<'_>,
) {
    let (most, vectors) = number_tile::shape(left.rows);
    for column in (0..right.columns).step_by(vectors * LANES) {
        let width = (right.columns - column).min(vectors * LANES);
        let vectors = match width.div_ceil(LANES) {
            3 => 4,
            5..=7 => 8,
            vectors => vectors,
        };
        let mut b: [&[f32]; MAX_VECTORS] = [&[]; MAX_VECTORS];
        for (vector, b) in b[..vectors].iter_mut().enumerate() {
            *b = &right.data[column + vector * LANES..];
        }
        for row in (0..left.rows).step_by(most) {
            let rows = most.min(left.rows - row);
            let factors = NumberFactors {
                a: &left.data[row * left.stride..],
                a_stride: left.stride,
                a_step: left.step,
                rows,
                b: &[b],
                terms_each: left.terms,
                b_stride: right.stride,
                vectors,
                terms: left.terms,
                next: &[],
            };
            let target = &mut target[row * stride + column..];
            let tile = vectors * LANES;
            if width == tile {
                number_tile::multiply(&mut TileTarget { data: target, stride, write }, &factors);
                continue;
            }
            let mut sums = [0.0; MAX_TILE];
            if write == Write::Add {
                let rows = target.chunks(stride).zip(sums[..rows * tile].chunks_mut(tile));
                rows.for_each(|(target, sums)| sums[..width].copy_from_slice(&target[..width]));
            }
            number_tile::multiply(
                &mut TileTarget { data: &mut sums, stride: tile, write },
                &factors,
            );
            let rows = target.chunks_mut(stride).zip(sums.chunks(tile)).take(factors.rows);
            rows.for_each(|(target, sums)| target[..width].copy_from_slice(&sums[..width]));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]

        #[test]
        fn a_product_is_right(
            rows in 1_usize..40,
            columns in 1_usize..150,
            terms in 1_usize..70,
            transposed: bool,
            adds: bool,
        ) {
            let uneven = |n: usize, seed: usize| -> Vec<f32> {
                (0..n).map(|i| ((i * 37 + seed * 11) % 23) as f32 * 0.125 - 1.0).collect()
            };
            let padded = columns.next_multiple_of(LANES);
            // A last vector may reach beyond the last row's columns.
            let (a, b) = (uneven(rows * terms, 1), uneven(terms * padded + 8 * LANES, 2));
            let (stride, step) = if transposed { (1, rows) } else { (terms, 1) };
            let left = LeftFactor { data: &a, stride, step, rows, terms };
            let right = RightFactor { data: &b, stride: padded, columns };
            let mut target = vec![0.5; rows * (columns + 1)];
            let write = if adds { Write::Add } else { Write::Replace };
            by_tiles(&mut target, columns + 1, write, left, right);
            let mut same = vec![0.5; rows * (columns + 1)];
            multiply(&mut same, columns + 1, write, left, right, Accuracy::Full);
            let differ = |(a, b): (&f32, &f32)| (a - b).abs() > 1e-3;
            prop_assert!(!target.iter().zip(&same).any(differ));
            for i in 0..rows {
                for j in 0..columns {
                    let product = |k: usize| {
                        f64::from(a[i * stride + k * step]) * f64::from(b[k * padded + j])
                    };
                    let before = if adds { 0.5 } else { 0.0 };
                    let right = before + (0..terms).map(product).sum::<f64>();
                    let ours = f64::from(target[i * (columns + 1) + j]);
                    prop_assert!((ours - right).abs() < 1e-3, "{ours} {right}");
                }
                prop_assert_eq!(target[i * (columns + 1) + columns], 0.5);
            }
        }
    }
}
