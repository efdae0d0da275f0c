//! Register tiles of f32 numbers and of bf16 numbers that are read as f32.

use std::array;

use crate::registers::{self, Register, of_shape, with_sums};
use crate::simd::{Level, level};
use crate::tile::{Half, LANES, MAX_VECTORS, TileTarget, Write};

/// Returns the most rows and column vectors of a tile on this processor, for a product of `rows` rows: enough parallel
/// sums to keep its units busy, and few enough for its registers.
#[must_use]
pub fn shape(rows: usize) -> (usize, usize) {
    match level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => match rows.div_ceil(rows.div_ceil(12).max(1)) {
            0..=2 => (2, 8),
            3..=4 => (4, 4),
            _ => (12, 2),
        },
        _ if rows == 1 => (1, 4),
        _ => (3, 2),
    }
}

/// A number in memory, which products read as f32.
#[expect(private_bounds, reason = "registers are no one else's")]
pub trait StoredNumber: Copy + Load {}

impl StoredNumber for f32 {}
impl StoredNumber for Half {}

/// Vectors of columns: each starts at its first term; term `k` is at `k * b_stride`.
pub type ColumnVectors<'a, T = f32> = [&'a [T]; MAX_VECTORS];

/// The factors of a tile: rows of `a` times columns of `b`.
#[derive(Clone, Copy, Debug)]
pub struct NumberFactors<'a, T = f32> {
    /// Term `k` of row `r` is at `r * a_stride + k * a_step`.
    pub a: &'a [f32],
    /// Distance between rows of `a`.
    pub a_stride: usize,
    /// Distance between terms of `a`.
    pub a_step: usize,
    /// The number of rows of `a`.
    pub rows: usize,
    /// The columns of each `terms_each` terms; the last entry may hold fewer.
    pub b: &'a [ColumnVectors<'a, T>],
    /// Terms in each entry of `b`.
    pub terms_each: usize,
    /// Distance between terms of a column vector.
    pub b_stride: usize,
    /// The number of column vectors.
    pub vectors: usize,
    /// The terms of each sum.
    pub terms: usize,
    /// Columns of the next tile, with the same stride: all vectors or one. They are prefetched while this tile is
    /// computed.
    pub next: &'a [&'a [T]],
}

/// Computes a tile, term by term: from 0, or from the numbers of the target. `[rows, vectors, LANES]`
///
/// # Panics
/// When the tile has no rows or terms, is larger than [`shape`] allows, or reaches beyond a slice, or when its rows overlap.
pub fn multiply<T: StoredNumber>(target: &mut TileTarget<'_>, factors: &NumberFactors<'_, T>) {
    let NumberFactors {
        a, a_stride, a_step, rows, b, terms_each, b_stride, vectors, terms, ..
    } = *factors;
    assert!(rows > 0 && terms > 0, "a tile has rows and terms");
    let last = (rows - 1) * a_stride + (terms - 1) * a_step;
    assert!(last < a.len(), "rows reach beyond their slice");
    assert!(b.len() * terms_each >= terms, "there are columns for every term");
    let mut left = terms;
    for columns in b {
        let last = (terms_each.min(left).max(1) - 1) * b_stride + LANES;
        let are_inside = columns[..vectors].iter().all(|column| last <= column.len());
        assert!(are_inside, "columns reach beyond their slice");
        left = left.saturating_sub(terms_each);
    }
    assert!(rows == 1 || target.stride >= vectors * LANES, "rows of sums do not overlap");
    let end = (rows - 1) * target.stride + vectors * LANES;
    assert!(end <= target.data.len(), "sums reach beyond their slice");
    // SAFETY: the assertions above cover every number that a tile of this shape touches, and `level` has found the
    // instructions.
    unsafe {
        match level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => multiply_wide(target, factors),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => multiply_narrow(target, factors),
            Level::Portable => multiply_portably(target, factors),
        }
    }
}

/// Loads sixteen numbers into registers.
trait Load: Sized {
    /// # Safety
    /// The processor has the instructions, and 16 numbers can be read.
    unsafe fn load<V: Register>(from: *const Self) -> V;
}

#[allow(clippy::inline_always, reason = "it must take on the features of its caller")]
impl Load for f32 {
    #[inline(always)]
    unsafe fn load<V: Register>(from: *const Self) -> V {
        // SAFETY: guaranteed by the caller.
        unsafe { V::load(from) }
    }
}

#[allow(clippy::inline_always, reason = "it must take on the features of its caller")]
impl Load for Half {
    #[inline(always)]
    unsafe fn load<V: Register>(from: *const Self) -> V {
        // SAFETY: guaranteed by the caller.
        unsafe { V::load_halves(from) }
    }
}

/// Some terms of a tile.
#[derive(Clone, Copy)]
struct Walk<T, const C: usize> {
    a: *const f32,
    a_stride: usize,
    a_step: usize,
    b: [*const T; C],
    b_stride: usize,
    count: usize,
}

impl<T: Load, const C: usize> Walk<T, C> {
    /// Adds the terms to the sums and prefetches from `next` on, one line per vector and term.
    ///
    /// # Safety
    /// The terms can be read, and the processor has the instructions.
    #[allow(clippy::inline_always, reason = "it must take on the features of its caller")]
    #[inline(always)]
    unsafe fn run<V: Register, const R: usize, const N: usize>(
        self,
        sums: &mut [[V; C]; R],
        next: [*const T; N],
    ) {
        let Self { mut a, a_stride, a_step, b, b_stride, count } = self;
        let mut offset = 0;
        for _ in 0..count {
            // SAFETY: guaranteed by the caller.
            let columns: [V; C] = array::from_fn(|c| unsafe { T::load(b[c].add(offset)) });
            for next in next {
                V::prefetch(next.wrapping_add(offset).cast());
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: as above.
                let x = unsafe { *a.add(r * a_stride) };
                for (sum, column) in sums.iter_mut().zip(columns) {
                    // SAFETY: as above.
                    *sum = unsafe { sum.plus(x, column) };
                }
            }
            a = a.wrapping_add(a_step);
            offset += b_stride;
        }
    }
}

/// # Safety
/// Every number that a tile of this shape touches can be read or written, and the processor has the instructions.
#[allow(clippy::inline_always, reason = "it must take on the features of its caller")]
#[inline(always)]
unsafe fn tile<T: Load, V: Register, const R: usize, const C: usize>(
    target: &mut TileTarget<'_>,
    factors: &NumberFactors<'_, T>,
) {
    with_sums!(target, |sums: [[V; C]; R]| {
        let NumberFactors { a, a_stride, a_step, b, terms_each, b_stride, terms, .. } = *factors;
        let (mut a, mut left) = (a.as_ptr(), terms);
        for (index, columns) in b.iter().enumerate() {
            let count = terms_each.min(left);
            let columns = array::from_fn(|c| columns[c].as_ptr());
            let walk = Walk { a, a_stride, a_step, b: columns, b_stride, count };
            let next = b.get(index + 1).map_or(factors.next, |next| &next[..C]);
            // Two separate loops, because a branch inside the loop costs more than it saves.
            // SAFETY: guaranteed by the caller.
            unsafe {
                match next.len() {
                    0 => walk.run::<V, R, 0>(&mut sums, []),
                    n if n < C => walk.run::<V, R, 1>(&mut sums, [next[0].as_ptr()]),
                    _ => walk.run::<V, R, C>(&mut sums, array::from_fn(|c| next[c].as_ptr())),
                }
            }
            a = a.wrapping_add(count * a_step);
            left -= count;
        }
    });
}

/// Defines the tiles of an instruction set: for each number of vectors, up to a number of rows.
macro_rules! tiles {
    ($name:ident, $register:ty, [$($feature:literal)?], $($vectors:literal: [$($rows:literal)*]),*) => {
        /// # Safety
        /// As [`tile`].
        ///
        /// # Panics
        /// When there is no tile of this shape.
        unsafe fn $name<T: Load>(target: &mut TileTarget<'_>, factors: &NumberFactors<'_, T>) {
            /// # Safety
            /// As [`tile`].
            $(#[target_feature(enable = $feature)])?
            unsafe fn shaped<T: Load, const R: usize, const C: usize>(
                target: &mut TileTarget<'_>,
                factors: &NumberFactors<'_, T>,
            ) {
                // SAFETY: guaranteed by the caller.
                unsafe { tile::<T, $register, R, C>(target, factors) }
            }
            // SAFETY: guaranteed by the caller.
            unsafe { of_shape!(shaped::<T>(target, factors), $($vectors: [$($rows)*]),*) }
        }
    };
}

#[cfg(target_arch = "x86_64")]
tiles!(multiply_wide, registers::Wide, ["avx512f"],
    1: [1 2 3 4 5 6 7 8 9 10 11 12], 2: [1 2 3 4 5 6 7 8 9 10 11 12], 4: [1 2 3 4], 8: [1 2]);
#[cfg(target_arch = "x86_64")]
tiles!(multiply_narrow, registers::Narrow, ["avx2,fma"], 1: [1 2 3], 2: [1 2 3], 4: [1]);
tiles!(multiply_portably, registers::Portable, [], 1: [1 2 3], 2: [1 2 3], 4: [1]);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pairs::{number, rounded};
    use crate::tile::MAX_TILE;

    fn uneven(length: usize) -> Vec<f32> {
        (0..length).map(|i| ((i * 37) % 41) as f32 * 0.1 - 2.0).collect()
    }

    /// Computes a tile of columns with 30 terms.
    fn sums<T: StoredNumber>(a: &[f32], columns: &[T], rows: usize, vectors: usize) -> Vec<f32> {
        let b: ColumnVectors<'_, T> =
            array::from_fn(|c| columns.get(c * 30 * LANES..).unwrap_or_default());
        let factors = NumberFactors {
            a,
            a_stride: 30,
            a_step: 1,
            rows,
            b: &[b],
            terms_each: 30,
            b_stride: LANES,
            vectors,
            terms: 30,
            next: &b[..1],
        };
        let mut sums = vec![0.0; rows * vectors * LANES];
        let stride = vectors * LANES;
        let mut target = TileTarget { data: &mut sums, stride, write: Write::Replace };
        multiply(&mut target, &factors);
        sums
    }

    #[test]
    fn halves_are_read_as_their_numbers() {
        let a = uneven(3 * 30);
        let halves: Vec<Half> =
            uneven(4 * 30 * LANES).into_iter().map(|x| Half(rounded(x))).collect();
        let numbers: Vec<f32> = halves.iter().map(|half| number(half.0)).collect();
        for (rows, vectors) in [(1, 1), (3, 2), (1, 4)] {
            assert_eq!(sums(&a, &halves, rows, vectors), sums(&a, &numbers, rows, vectors));
        }
    }

    /// With every instruction set, and however the terms are cut, an element is the same chain; without fused
    /// operations it is close to it.
    #[test]
    fn every_instruction_set_computes_the_same_tile() {
        let (a, b) = (uneven(12 * 80), uneven(8 * 100 * LANES));
        let pieces: Vec<ColumnVectors<'_>> =
            (0..3).map(|piece| array::from_fn(|c| &b[(c * 100 + piece * 33) * LANES..])).collect();
        let shapes = [(1, 4), (1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2)];
        for (rows, vectors) in shapes {
            let whole = NumberFactors {
                a: &a,
                a_stride: 80,
                a_step: 1,
                rows,
                b: &pieces[..1],
                terms_each: 70,
                b_stride: LANES,
                vectors,
                terms: 70,
                next: &[],
            };
            let cut = NumberFactors { b: &pieces, terms_each: 33, next: &pieces[0][..1], ..whole };
            let of = |run: &dyn Fn(&mut TileTarget<'_>)| {
                [Write::Add, Write::Replace].map(|write| {
                    let mut sums = [0.25; MAX_TILE];
                    run(&mut TileTarget { data: &mut sums, stride: vectors * LANES, write });
                    sums
                })
            };
            let best = of(&|target| multiply(target, &whole));
            assert_eq!(best, of(&|target| multiply(target, &cut)));
            // SAFETY: the slices hold the whole tile, and the instructions are checked for.
            let plain = of(&|target| unsafe { multiply_portably(target, &cut) });
            let (numbers, plain) = (best.as_flattened(), plain.as_flattened());
            assert!(numbers.iter().zip(plain).all(|(a, b)| (a - b).abs() < 1e-3));
            #[cfg(target_arch = "x86_64")]
            if level() != Level::Portable {
                // SAFETY: as above.
                let narrow = of(&|target| unsafe { multiply_narrow(target, &cut) });
                assert_eq!(best, narrow);
            }
        }
    }
}
