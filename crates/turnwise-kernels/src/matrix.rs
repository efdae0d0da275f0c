//! Matrix products (GEMM) on slices: on the processor's matrix unit (AMX) where it has one, otherwise by the crate `gemm`,
//! and in bf16 by tiles of our own.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod blocks;
mod halves;
#[cfg(target_arch = "x86_64")]
mod split;

#[cfg(target_arch = "x86_64")]
use std::slice;

use halves::HalfSide;

pub use crate::tile::Write;

/// Returns whether products in bf16 are faster than in f32 on this processor: with AVX-512-BF16 or AMX.
#[must_use]
pub fn has_fast_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return crate::pair_tile::has_dot() || amx::is_available();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// A view of a matrix in a slice: element `(i, j)` is at `i * row_stride + j * column_stride`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    data: &'a [f32],
    shape: Shape,
}

/// A mutable view of a matrix.
#[derive(Debug)]
pub struct MatrixMut<'a> {
    data: &'a mut [f32],
    shape: Shape,
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl Shape {
    /// # Panics
    /// If an element lies outside a slice of `length`.
    fn checked(self, length: usize) -> Self {
        if self.rows > 0 && self.columns > 0 {
            let last = (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride;
            assert!(last < length, "{self:?} does not fit {length} values");
        }
        self
    }
}

impl<'a> Matrix<'a> {
    /// Views contiguous rows, `columns` wide.
    ///
    /// # Panics
    /// If `columns` is 0.
    #[must_use]
    pub fn rows(data: &'a [f32], columns: usize) -> Self {
        Self::strided(data, data.len() / columns, columns, columns)
    }

    /// Views rows that start `stride` apart.
    ///
    /// # Panics
    /// If an element lies outside the slice.
    #[must_use]
    pub fn strided(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        let shape = Shape { rows, columns, row_stride: stride, column_stride: 1 };
        Self { data, shape: shape.checked(data.len()) }
    }

    /// Views elements that are `row_stride` and `column_stride` apart.
    ///
    /// # Panics
    /// If an element lies outside the slice.
    #[must_use]
    pub fn stepped(
        data: &'a [f32],
        [rows, columns]: [usize; 2],
        [row_stride, column_stride]: [usize; 2],
    ) -> Self {
        let shape = Shape { rows, columns, row_stride, column_stride };
        Self { data, shape: shape.checked(data.len()) }
    }

    /// Returns `count` columns from `start` on.
    ///
    /// # Panics
    /// If the matrix has fewer columns.
    #[must_use]
    pub fn columns(self, start: usize, count: usize) -> Self {
        assert!(start + count <= self.shape.columns, "columns must be there");
        let data = &self.data[start * self.shape.column_stride..];
        Self { data, shape: Shape { columns: count, ..self.shape } }
    }

    /// Returns the transpose.
    #[must_use]
    pub fn transposed(self) -> Self {
        let Shape { rows, columns, row_stride, column_stride } = self.shape;
        let shape = Shape {
            rows: columns,
            columns: rows,
            row_stride: column_stride,
            column_stride: row_stride,
        };
        Self { shape, ..self }
    }
}

impl<'a> MatrixMut<'a> {
    /// Views contiguous rows, `columns` wide.
    ///
    /// # Panics
    /// If `columns` is 0.
    #[must_use]
    pub fn rows(data: &'a mut [f32], columns: usize) -> Self {
        let rows = data.len() / columns;
        Self::strided(data, rows, columns, columns)
    }

    /// Views rows that start `stride` apart.
    ///
    /// # Panics
    /// If rows overlap, or if an element lies outside the slice.
    #[must_use]
    pub fn strided(data: &'a mut [f32], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(stride >= columns, "rows that are written must not overlap");
        let shape =
            Shape { rows, columns, row_stride: stride, column_stride: 1 }.checked(data.len());
        Self { data, shape }
    }
}

impl MatrixMut<'_> {
    /// Returns `count` columns from `start` on.
    ///
    /// # Panics
    /// If the matrix has fewer columns.
    pub fn columns(&mut self, start: usize, count: usize) -> MatrixMut<'_> {
        assert!(start + count <= self.shape.columns, "columns must be there");
        let data = &mut self.data[start * self.shape.column_stride..];
        MatrixMut { data, shape: Shape { columns: count, ..self.shape } }
    }
}

/// The threads of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parallelism {
    /// The calling thread alone.
    Serial,
    /// The caller's rayon pool, for products that are large enough to gain from it.
    Pool,
}

/// The accuracy of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accuracy {
    /// The accuracy of f32.
    Full,
    /// Each term to three parts in 2^16 or better: enough for a gradient, whose sampling noise is far larger.
    Gradient,
    /// Factors are rounded to the nearest bf16, and sums are f32: twice as fast as f32 or more, where the processor has
    /// instructions for it.
    Bf16,
}

/// Returns whether one thread should compute a product of this shape from packed factors: the processor has a matrix unit
/// for it, or instructions for bf16.
#[must_use]
pub fn packing_pays(rows: usize, terms: usize, columns: usize, accuracy: Accuracy) -> bool {
    let is_large = rows * terms * columns >= PACKED_FROM;
    let in_bf16 = accuracy == Accuracy::Bf16 && has_bf16_vectors();
    is_large && (in_bf16 || unit_takes(rows, terms, columns))
}

/// Returns whether products in bf16 are computed by vector units with instructions for them.
fn has_bf16_vectors() -> bool {
    #[cfg(target_arch = "x86_64")]
    return crate::pair_tile::has_dot() && !amx::is_available();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Multiply-adds of the smallest product that is worth packing.
const PACKED_FROM: usize = 1 << 17;

/// Returns whether the processor has a matrix unit and a product of this shape fills it.
fn unit_takes(rows: usize, terms: usize, columns: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    return blocks::suit(rows, terms, columns);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (rows, terms, columns);
        false
    }
}

/// How several matrices are joined to one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Along {
    /// Side by side; their products are side by side too.
    Columns,
    /// One below the other; their products are added.
    Terms,
}

/// Computes `target = scale * a b`, or `target += scale * a b`.
///
/// ```
/// use turnwise_kernels::matrix::{Accuracy, Matrix, MatrixMut, Parallelism, Write, multiply};
///
/// let (a, b) = ([1.0, 2.0], [3.0, 4.0]);
/// let mut product = [0.0];
/// let mut target = MatrixMut::rows(&mut product, 1);
/// let factors = [Matrix::rows(&a, 2), Matrix::rows(&b, 1)];
/// multiply(&mut target, Write::Replace, 1.0, factors, Accuracy::Full, Parallelism::Serial);
/// assert_eq!(product, [11.0]);
/// ```
///
/// # Panics
/// When the shapes do not fit.
pub fn multiply(
    target: &mut MatrixMut<'_>,
    write: Write,
    scale: f32,
    [a, b]: [Matrix<'_>; 2],
    accuracy: Accuracy,
    threads: Parallelism,
) {
    check(target.shape, a.shape, b.shape);
    #[cfg(target_arch = "x86_64")]
    if let Some(right) = blocks::JoinedRight::new(&[b], Along::Columns)
        && right.suits(a.shape.rows)
    {
        let left = blocks::Scaled { side: split::Side::left(a), by: scale };
        let right = blocks::RightOperand::Loose(&right, accuracy);
        return blocks::multiply(slice::from_mut(target), write, left, right, threads);
    }
    if accuracy == Accuracy::Bf16 {
        return halves::multiply(target, write, scale, [a, b], threads);
    }
    multiply_on_vector_units(target, write, scale, [a, b], threads);
}

/// Computes `target = a B`, or `target += a B`, where `B` joins several matrices, on the caller's rayon pool.
///
/// # Panics
/// When the shapes do not fit.
pub fn multiply_joined(
    target: &mut MatrixMut<'_>,
    write: Write,
    a: Matrix<'_>,
    joined: &[Matrix<'_>],
    along: Along,
    accuracy: Accuracy,
) {
    #[cfg(target_arch = "x86_64")]
    if let Some(right) = blocks::JoinedRight::new(joined, along)
        && right.suits(a.shape.rows)
    {
        check(target.shape, a.shape, right.shape());
        let left = blocks::Scaled { side: split::Side::left(a), by: 1.0 };
        let right = blocks::RightOperand::Loose(&right, accuracy);
        return blocks::multiply(slice::from_mut(target), write, left, right, Parallelism::Pool);
    }
    let mut start = 0;
    for (index, b) in joined.iter().enumerate() {
        let Shape { rows, columns, .. } = b.shape;
        match along {
            Along::Columns => {
                let mut target = target.columns(start, columns);
                multiply(&mut target, write, 1.0, [a, *b], accuracy, Parallelism::Pool);
                start += columns;
            }
            Along::Terms => {
                let write = if index == 0 { write } else { Write::Add };
                let a = a.columns(start, rows);
                multiply(target, write, 1.0, [a, *b], accuracy, Parallelism::Pool);
                start += rows;
            }
        }
    }
}

/// Adds `a b` to several targets that hold consecutive rows of it, on the caller's rayon pool.
///
/// # Panics
/// When the shapes do not fit.
pub fn add_to_each(targets: &mut [MatrixMut<'_>], [a, b]: [Matrix<'_>; 2], accuracy: Accuracy) {
    #[cfg(target_arch = "x86_64")]
    if let Some(right) = blocks::JoinedRight::new(&[b], Along::Columns)
        && right.suits(a.shape.rows)
    {
        let rows = targets.iter().map(|target| target.shape.rows).sum::<usize>();
        for target in &*targets {
            check(Shape { rows, ..target.shape }, a.shape, b.shape);
        }
        let left = blocks::Scaled { side: split::Side::left(a), by: 1.0 };
        let right = blocks::RightOperand::Loose(&right, accuracy);
        return blocks::multiply(targets, Write::Add, left, right, Parallelism::Pool);
    }
    let mut start = 0;
    for target in targets {
        let rows = target.shape.rows;
        let sides = [a.transposed().columns(start, rows).transposed(), b];
        multiply(target, Write::Add, 1.0, sides, accuracy, Parallelism::Pool);
        start += rows;
    }
}

/// A right factor of many products, packed once for the matrix unit if the processor has one, or as bf16.
#[derive(Debug)]
pub struct Prepacked<'a> {
    b: Matrix<'a>,
    accuracy: Accuracy,
    packed: PackedFactor,
}

#[derive(Debug)]
enum PackedFactor {
    No,
    Unit(PackedSides),
    Halves(HalfSide),
}

impl<'a> Prepacked<'a> {
    /// Packs the factor, if products with it are computed from packed numbers.
    #[must_use]
    pub fn new(b: Matrix<'a>, accuracy: Accuracy, threads: Parallelism) -> Self {
        let packed = if unit_takes(usize::MAX, b.shape.rows, b.shape.columns) {
            PackedFactor::Unit(PackedSides::new(&[b], accuracy, threads))
        } else if accuracy == Accuracy::Bf16 {
            PackedFactor::Halves(HalfSide::new(b, threads))
        } else {
            PackedFactor::No
        };
        Self { b, accuracy, packed }
    }

    /// Computes `target = a b`, or `target += a b`.
    ///
    /// # Panics
    /// When the shapes do not fit.
    pub fn multiply(
        &self,
        target: &mut MatrixMut<'_>,
        write: Write,
        a: Matrix<'_>,
        threads: Parallelism,
    ) {
        check(target.shape, a.shape, self.b.shape);
        let suits = unit_takes(a.shape.rows, self.b.shape.rows, self.b.shape.columns);
        match &self.packed {
            PackedFactor::Unit(packed) if suits => {
                packed.multiply_first(target, write, a, 0, threads);
            }
            PackedFactor::Halves(packed) => packed.multiply_first(target, write, a, threads),
            _ => multiply(target, write, 1.0, [a, self.b], self.accuracy, threads),
        }
    }
}

/// Right factors, packed for the matrix unit if the processor has one, or as bf16.
#[derive(Debug)]
pub struct PackedSides {
    /// Rows and columns of each factor.
    shapes: Vec<[usize; 2]>,
    kept: KeptSides,
}

#[derive(Debug)]
enum KeptSides {
    #[cfg(target_arch = "x86_64")]
    Unit(blocks::Kept),
    Halves(Vec<HalfSide>),
}

impl PackedSides {
    /// Packs the factors.
    ///
    /// # Panics
    /// When the processor has no matrix unit and the accuracy is not that of bf16.
    #[must_use]
    pub fn new(sides: &[Matrix<'_>], accuracy: Accuracy, threads: Parallelism) -> Self {
        let shapes: Vec<_> = sides.iter().map(|b| [b.shape.rows, b.shape.columns]).collect();
        #[cfg(target_arch = "x86_64")]
        if amx::is_available() {
            let sides = sides.iter().map(slice::from_ref);
            let rights: Option<Vec<_>> =
                sides.map(|side| blocks::JoinedRight::new(side, Along::Columns)).collect();
            let rights = rights.expect("one matrix has no seam");
            let kept = KeptSides::Unit(blocks::Kept::new(&rights, accuracy, threads));
            return Self { shapes, kept };
        }
        assert!(accuracy == Accuracy::Bf16, "no matrix unit for {shapes:?}, {accuracy:?}");
        let halves = sides.iter().map(|b| HalfSide::new(*b, threads)).collect();
        Self { shapes, kept: KeptSides::Halves(halves) }
    }

    /// Computes `target = a b`, or `target += a b`, with the first rows and columns of a packed factor: as many rows as
    /// `a` has columns, and as many columns as the target has. Rows up to the next multiple of 32 must be finite: they
    /// are multiplied by 0.
    ///
    /// # Panics
    /// When the shapes do not fit, or there are no rows.
    pub fn multiply_first(
        &self,
        target: &mut MatrixMut<'_>,
        write: Write,
        a: Matrix<'_>,
        side: usize,
        threads: Parallelism,
    ) {
        let (terms, columns) = (a.shape.columns, target.shape.columns);
        let [rows, most] = self.shapes[side];
        assert!(target.shape.rows == a.shape.rows, "matrix shapes must fit");
        assert!(
            (1..=rows).contains(&terms) && columns <= most,
            "terms and columns must lie inside the packed side"
        );
        match &self.kept {
            #[cfg(target_arch = "x86_64")]
            KeptSides::Unit(kept) => {
                let left = blocks::Scaled { side: split::Side::left(a), by: 1.0 };
                let right = blocks::RightOperand::Kept { kept, side, terms, columns };
                blocks::multiply(slice::from_mut(target), write, left, right, threads);
            }
            KeptSides::Halves(sides) => sides[side].multiply_first(target, write, a, threads),
        }
    }
}

fn check(target: Shape, a: Shape, b: Shape) {
    assert_eq!(
        (target.rows, target.columns, a.columns),
        (a.rows, b.columns, b.rows),
        "matrix shapes must fit"
    );
}

/// Computes [`multiply`] on the vector units (crate `gemm`), even if there is a matrix unit.
///
/// # Panics
/// When the shapes do not fit.
pub fn multiply_on_vector_units(
    target: &mut MatrixMut<'_>,
    write: Write,
    scale: f32,
    [a, b]: [Matrix<'_>; 2],
    threads: Parallelism,
) {
    let parallelism = match threads {
        Parallelism::Serial => gemm::Parallelism::None,
        Parallelism::Pool => gemm::Parallelism::Rayon(0),
    };
    let stride = usize::cast_signed;
    // SAFETY: `Shape::checked` ensures that every element of the three matrices lies inside its slice. The target is
    // borrowed mutably, so that it overlaps neither `a` nor `b`, and its rows do not overlap each other.
    unsafe {
        gemm::gemm(
            target.shape.rows,
            target.shape.columns,
            a.shape.columns,
            target.data.as_mut_ptr(),
            stride(target.shape.column_stride),
            stride(target.shape.row_stride),
            write == Write::Add,
            a.data.as_ptr(),
            stride(a.shape.column_stride),
            stride(a.shape.row_stride),
            b.data.as_ptr(),
            stride(b.shape.column_stride),
            stride(b.shape.row_stride),
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns non-integer numbers of many magnitudes.
    fn uneven(length: usize, seed: usize) -> Vec<f32> {
        let mut state = seed as u32 * 2 + 1;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..length).map(|i| next() * [1.0, 0.01, 30.0][i % 3]).collect()
    }

    #[derive(Clone, Copy, Debug)]
    struct Case {
        shape: [usize; 3],
        transposed: [bool; 2],
        between: usize,
        adds: bool,
        scale: f32,
        accuracy: Accuracy,
    }

    /// Returns a matrix with unrelated numbers between its rows, plain or transposed, and its elements.
    fn matrix(
        data: &[f32],
        [rows, columns]: [usize; 2],
        between: usize,
        transposed: bool,
    ) -> Matrix<'_> {
        if transposed {
            Matrix::strided(data, columns, rows, rows + between).transposed()
        } else {
            Matrix::strided(data, rows, columns, columns + between)
        }
    }

    fn element(matrix: &Matrix<'_>, i: usize, j: usize) -> f64 {
        f64::from(matrix.data[i * matrix.shape.row_stride + j * matrix.shape.column_stride])
    }

    /// The largest error, relative to the sum of the terms' sizes.
    fn error(case: Case) -> f64 {
        let Case { shape: [rows, terms, columns], transposed, between, adds, scale, accuracy } =
            case;
        let largest = |a: usize, b: usize| a.max(b) * (a.min(b).max(a.max(b)) + between);
        let (a, b) = (uneven(largest(rows, terms), 1), uneven(largest(terms, columns), 2));
        let a = matrix(&a, [rows, terms], between, transposed[0]);
        let b = matrix(&b, [terms, columns], between, transposed[1]);
        let before = uneven(rows * (columns + between), 3);
        let mut target = before.clone();
        let write = if adds { Write::Add } else { Write::Replace };
        let stride = columns + between;
        let mut matrix = MatrixMut::strided(&mut target, rows, columns, stride);
        multiply(&mut matrix, write, scale, [a, b], accuracy, Parallelism::Pool);
        if scale == 1.0 {
            // A prepacked side gives the same bits.
            let mut same = before.clone();
            let mut matrix = MatrixMut::strided(&mut same, rows, columns, stride);
            let shared = Prepacked::new(b, accuracy, Parallelism::Serial);
            shared.multiply(&mut matrix, write, a, Parallelism::Serial);
            assert_eq!(same, target);
            if unit_takes(usize::MAX, usize::MAX, usize::MAX) {
                first_are_those_of_more(a, b, accuracy);
            }
        }
        let mut worst = 0.0_f64;
        for (at, (x, before)) in target.iter().zip(&before).enumerate() {
            let (i, j) = (at / (columns + between), at % (columns + between));
            if j >= columns {
                assert_eq!(x, before, "what lies between rows is left alone");
                continue;
            }
            let before = if adds { f64::from(*before) } else { 0.0 };
            let term = |k: usize| f64::from(scale) * element(&a, i, k) * element(&b, k, j);
            let (sum, size) = (0..terms)
                .map(term)
                .fold((before, before.abs()), |(sum, size), term| (sum + term, size + term.abs()));
            worst = worst.max((f64::from(*x) - sum).abs() / size);
        }
        worst
    }

    /// Checks that the first columns and terms of a packed side multiply like a side of these columns and terms alone.
    fn first_are_those_of_more(a: Matrix<'_>, b: Matrix<'_>, accuracy: Accuracy) {
        let (terms, columns) = (b.shape.rows.div_ceil(2), b.shape.columns.div_ceil(3));
        let a = a.columns(0, terms);
        let few = b.columns(0, columns).transposed().columns(0, terms).transposed();
        let of = |sides: &[Matrix<'_>]| {
            let mut target = vec![0.5; a.shape.rows * columns];
            let packed = PackedSides::new(sides, accuracy, Parallelism::Serial);
            let mut matrix = MatrixMut::rows(&mut target, columns);
            packed.multiply_first(&mut matrix, Write::Add, a, sides.len() - 1, Parallelism::Serial);
            target
        };
        assert_eq!(of(&[a.transposed(), b]), of(&[few]));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..Default::default() })]

        #[test]
        fn a_product_is_right_to_the_rounding_of_its_sums(
            shape in prop::array::uniform3(1_usize..100),
            transposed: [bool; 2],
            between in 0_usize..3,
            adds: bool,
            scaled: bool,
        ) {
            let scale = if scaled { 0.3 } else { 1.0 };
            let limits =
                [(Accuracy::Full, 1e-6), (Accuracy::Gradient, 5e-5), (Accuracy::Bf16, 8e-3)];
            for (accuracy, most) in limits {
                let error = error(Case { shape, transposed, between, adds, scale, accuracy });
                prop_assert!(error < most, "{accuracy:?} {error}");
            }
        }
    }

    /// Joined matrices multiply like one matrix, even if a tile crosses their boundary.
    #[test]
    fn joined_matrices_are_one() {
        for counts in [[64, 32, 70], [40, 20, 33]] {
            let (rows, width) = (50, 48);
            let all: usize = counts.iter().sum();
            let (x, weight, dy) =
                (uneven(rows * width, 1), uneven(all * width, 2), uneven(rows * all, 3));
            let mut rest = Matrix::rows(&weight, width).data;
            let parts = counts.map(|count| {
                let (own, others) = rest.split_at(count * width);
                rest = others;
                own
            });
            let near = |a: &[f32], b: &[f32]| {
                let far = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                let size = b.iter().map(|x| x.abs()).fold(0.0, f32::max);
                assert!(far < 1e-4 * size, "{far} of {size}");
            };
            let (x, dy) = (Matrix::rows(&x, width), Matrix::rows(&dy, all));
            let one = |size: usize, a: Matrix<'_>, b: Matrix<'_>| {
                let mut target = vec![0.0; size];
                let mut matrix = MatrixMut::rows(&mut target, b.shape.columns);
                multiply_on_vector_units(
                    &mut matrix,
                    Write::Replace,
                    1.0,
                    [a, b],
                    Parallelism::Serial,
                );
                target
            };
            let whole = Matrix::rows(&weight, width);
            let full = Accuracy::Full;
            let mut y = vec![0.5; rows * all];
            let columns = parts.map(|part| Matrix::rows(part, width).transposed());
            let mut target = MatrixMut::rows(&mut y, all);
            multiply_joined(&mut target, Write::Replace, x, &columns, Along::Columns, full);
            near(&y, &one(rows * all, x, whole.transposed()));
            let mut dx = vec![0.5; rows * width];
            let terms = parts.map(|part| Matrix::rows(part, width));
            let mut target = MatrixMut::rows(&mut dx, width);
            multiply_joined(&mut target, Write::Replace, dy, &terms, Along::Terms, full);
            near(&dx, &one(rows * width, dy, whole));
            let mut each = counts.map(|count| vec![0.0; count * width]);
            let mut targets: Vec<MatrixMut<'_>> =
                each.iter_mut().map(|target| MatrixMut::rows(target, width)).collect();
            add_to_each(&mut targets, [dy.transposed(), x], full);
            near(&each.concat(), &one(all * width, dy.transposed(), x));
        }
    }

    /// The gradient of a matrix with one row: its left factor is a column, transposed.
    #[test]
    fn a_product_of_a_transposed_column_is_right() {
        for accuracy in [Accuracy::Full, Accuracy::Gradient, Accuracy::Bf16] {
            let shape = [1, 71, 30];
            let transposed = [true, false];
            let error =
                error(Case { shape, transposed, between: 0, adds: true, scale: 1.0, accuracy });
            assert!(error < 8e-3, "{accuracy:?}: {error}");
        }
    }

    /// The product is larger than one packed block and runs on several threads.
    #[test]
    fn a_large_product_is_right() {
        for transposed in [[false, true], [true, false]] {
            for (accuracy, most) in [(Accuracy::Full, 5e-7), (Accuracy::Bf16, 8e-3)] {
                let shape = [170, 1100, 1700];
                let case = Case { shape, transposed, between: 0, adds: true, scale: 1.0, accuracy };
                let error = error(case);
                assert!(error < most, "{error}");
            }
        }
    }
}
