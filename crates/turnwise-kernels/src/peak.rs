//! Peaks of the machine, which measured speeds are compared with.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::matrix::{
    Accuracy, Matrix, MatrixMut, Parallelism, Write, multiply, multiply_on_vector_units,
    packing_pays,
};
use crate::panels::{Epilogue, PanelFormat, Panels, StoredMatrix, StridedRows};
use crate::team::Team;

/// Rows, terms and columns of products that are large enough for the library's best speed, in shapes of training.
const SHAPES: [[usize; 3]; 3] = [[2048, 1024, 1024], [4096, 256, 768], [1024, 1024, 4096]];

/// The time for which each shape is tried.
const TRIAL: Duration = Duration::from_millis(200);

/// Measures the floating-point operations per second of large f32 matrix products on this many threads, computed by the
/// processor's vector units (crate `gemm`); a multiply-add counts as two. Each shape is tried with the second matrix
/// plain and transposed; the fastest counts.
///
/// ```
/// assert!(turnwise_kernels::gemm_peak(1) > 1e8);
/// ```
///
/// # Panics
/// When `threads` is 0, or the system cannot start them.
#[must_use]
pub fn gemm_peak(threads: usize) -> f64 {
    fastest_of(threads, |target, sides| {
        multiply_on_vector_units(target, Write::Replace, 1.0, sides, Parallelism::Pool);
    })
}

/// Like [`gemm_peak`], but on the processor's matrix unit, which needs several operations for one f32 operation of
/// training's forward pass; `None` without a matrix unit.
///
/// ```
/// assert!(turnwise_kernels::matrix_unit_peak(1).is_none_or(|peak| peak > 1e8));
/// ```
///
/// # Panics
/// When `threads` is 0, or the system cannot start them.
#[must_use]
pub fn matrix_unit_peak(threads: usize) -> Option<f64> {
    let [rows, terms, columns] = SHAPES[0];
    packing_pays(rows, terms, columns, Accuracy::Full).then(|| {
        fastest_of(threads, |target, sides| {
            multiply(target, Write::Replace, 1.0, sides, Accuracy::Full, Parallelism::Pool);
        })
    })
}

/// Like [`gemm_peak`], in bf16 with sums in f32, by whatever the processor is fastest with.
///
/// ```
/// assert!(turnwise_kernels::bf16_peak(1) > 1e8);
/// ```
///
/// # Panics
/// When `threads` is 0, or the system cannot start them.
#[must_use]
pub fn bf16_peak(threads: usize) -> f64 {
    fastest_of(threads, |target, sides| {
        multiply(target, Write::Replace, 1.0, sides, Accuracy::Bf16, Parallelism::Pool);
    })
}

/// Measures the operations per second of products of many rows and weights in int8 on this many threads; a multiply-add
/// counts as two.
///
/// ```
/// assert!(turnwise_kernels::int8_peak(1) > 1e8);
/// ```
///
/// # Panics
/// When `threads` is 0, or the system cannot start them.
#[must_use]
pub fn int8_peak(threads: usize) -> f64 {
    const ROWS: usize = 240;
    const WIDTH: usize = 1024;
    let matrix = vec![0.25; WIDTH * WIDTH];
    let stored = StoredMatrix { matrix: &matrix, bias: None };
    let panels = Panels::side_by_side(&[stored], WIDTH, PanelFormat::Int8);
    let rows = vec![0.5; ROWS * WIDTH];
    let rows = StridedRows { data: &rows, stride: WIDTH, count: ROWS };
    let mut product = vec![0.0; ROWS * WIDTH];
    let mut team = Team::new(threads, "peak").expect("the system can start threads");
    let seconds = fastest(|| panels.multiply(&mut team, rows, &mut product, Epilogue::Replace));
    black_box(product);
    2.0 * (ROWS * WIDTH * WIDTH) as f64 / seconds
}

type Multiply = fn(&mut MatrixMut<'_>, [Matrix<'_>; 2]);

fn fastest_of(threads: usize, multiply: Multiply) -> f64 {
    let pool = pool(threads);
    let shapes = SHAPES.into_iter().flat_map(|shape| [(shape, false), (shape, true)]);
    let speeds =
        shapes.map(|(shape, transposed)| pool.install(|| speed(shape, transposed, multiply)));
    speeds.fold(0.0, f64::max)
}

fn speed([rows, terms, columns]: [usize; 3], transposed: bool, multiply: Multiply) -> f64 {
    let (a, b) = (vec![0.5; rows * terms], vec![0.25; terms * columns]);
    let mut product = vec![0.0; rows * columns];
    let seconds = fastest(|| {
        let b = if transposed {
            Matrix::rows(&b, terms).transposed()
        } else {
            Matrix::rows(&b, columns)
        };
        let mut target = MatrixMut::rows(&mut product, columns);
        multiply(&mut target, [Matrix::rows(&a, terms), b]);
    });
    black_box(product);
    2.0 * (rows * terms * columns) as f64 / seconds
}

/// Measures the highest bytes per second at which this many threads repeatedly read `bytes` of memory. Data that fits
/// into a cache is read from the cache, so `bytes` should be what a step reads.
///
/// ```
/// assert!(turnwise_kernels::read_bandwidth(1, 1 << 20) > 1e8);
/// ```
///
/// # Panics
/// When `threads` is 0, or the system cannot start them.
#[must_use]
pub fn read_bandwidth(threads: usize, bytes: usize) -> f64 {
    const FLOATS: usize = 1 << 14;
    let memory = vec![1.0_f32; (bytes / size_of::<f32>()).max(FLOATS)];
    let seconds = pool(threads).install(|| {
        fastest(|| {
            let parts = memory.par_chunks(FLOATS).map(crate::math::maximum);
            black_box(parts.reduce(|| 0.0, f32::max));
        })
    });
    (memory.len() * size_of::<f32>()) as f64 / seconds
}

fn pool(threads: usize) -> ThreadPool {
    assert!(threads > 0, "there must be at least one thread");
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    pool.expect("the system can start threads")
}

/// Returns the shortest time of the work in seconds, without its first run.
fn fastest(mut work: impl FnMut()) -> f64 {
    work();
    let (started, mut least) = (Instant::now(), f64::INFINITY);
    while started.elapsed() < TRIAL {
        let begun = Instant::now();
        work();
        least = least.min(begun.elapsed().as_secs_f64());
    }
    least
}
