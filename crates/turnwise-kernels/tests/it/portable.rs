//! Kernels with portable paths that miri can run.

use turnwise_kernels::matrix::{Accuracy, Write};
use turnwise_kernels::panels::{Epilogue, PanelFormat, Panels, StoredMatrix, StridedRows};
use turnwise_kernels::small::{self, LeftFactor, RightFactor};
use turnwise_kernels::tile::{CacheLine, LANES, numbers, numbers_mut};
use turnwise_kernels::{math, reduce, vectorized};

fn uneven(length: usize, seed: usize) -> Vec<f32> {
    (0..length).map(|i| ((i * 37 + seed * 11) % 23) as f32 * 0.125 - 1.0).collect()
}

#[test]
fn cache_lines_are_their_numbers() {
    let mut lines = vec![CacheLine::ZERO; 3];
    numbers_mut(&mut lines)[LANES + 2] = 7.0;
    assert_eq!((lines[1].0[2], numbers(&lines).len()), (7.0, 3 * LANES));
}

vectorized! {
    /// Returns the log-sum-exp of numbers.
    fn log_sum_exp(x: &[f32]) -> f32 {
        let highest = math::maximum(x);
        highest + math::exponential_sums(x, highest).0.ln()
    }
}

#[test]
fn sums_of_blocks_are_the_sum() {
    for length in [1, 16, 63, 64, 65, 200] {
        let x = uneven(length, length);
        let mut sums = vec![0.0; length.div_ceil(reduce::BLOCK)];
        reduce::exponential_block_sums(&x, reduce::maximum(&x), 1.0, &mut sums);
        let sum = sums.iter().sum::<f64>().ln() + f64::from(reduce::maximum(&x));
        assert!((sum - f64::from(log_sum_exp(&x))).abs() < 1e-5);
    }
}

/// A last tile that is narrower than a vector, and rows that do not fill a tile.
#[test]
fn tiles_at_the_edge_stay_inside_their_slices() {
    let (rows, terms, columns) = (5, 7, 19_usize);
    let padded = columns.next_multiple_of(LANES);
    let (a, b) = (uneven(rows * terms, 1), uneven(terms * padded + 8 * LANES, 2));
    let left = LeftFactor { data: &a, stride: terms, step: 1, rows, terms };
    let right = RightFactor { data: &b, stride: padded, columns };
    let mut target = vec![0.5; rows * columns];
    small::multiply(&mut target, columns, Write::Add, left, right, Accuracy::Full);
    for i in 0..rows {
        for j in 0..columns {
            let term = |k: usize| f64::from(a[i * terms + k]) * f64::from(b[k * padded + j]);
            let right = 0.5 + (0..terms).map(term).sum::<f64>();
            assert!((f64::from(target[i * columns + j]) - right).abs() < 1e-4);
        }
    }
}

#[test]
fn panels_write_every_column_once() {
    let (rows, width, columns) = (3, 5, 21);
    let (a, matrix) = (uneven(rows * width, 1), uneven(columns * width, 2));
    let stored = StoredMatrix { matrix: &matrix, bias: None };
    let panels = Panels::side_by_side(&[stored], width, PanelFormat::F32);
    let stride = panels.columns(Epilogue::Replace);
    let mut target = vec![f32::NAN; rows * stride];
    let x = StridedRows { data: &a, stride: width, count: rows };
    panels.multiply_alone(x, &mut target, Epilogue::Replace);
    for (row, target) in a.chunks(width).zip(target.chunks(stride)) {
        for (column, target) in matrix.chunks(width).zip(target) {
            assert!((math::dot(row, column) - target).abs() < 1e-4);
        }
        assert!(target[columns..].iter().all(|x| *x == 0.0));
    }
}
