//! Register tiles of bf16 pairs: like [`number_tile`](crate::number_tile), with two terms in each step and sums in f32.
//!
//! Processors with AVX-512-BF16 have an instruction for a step. On others a pair is split into two f32 numbers, whose
//! products are exact. A sum is one chain from the first pair to the last, so that a row has the same bits alone and
//! among others; instruction sets round its sums differently.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_load_si512, _mm512_set1_epi32,
};
use std::array;
use std::marker::PhantomData;
#[cfg(target_arch = "x86_64")]
use std::mem::transmute;

use crate::pairs::{PairLine, terms};
use crate::registers::{self, Register, of_shape, with_sums};
#[cfg(target_arch = "x86_64")]
use crate::simd::{Level, level};
use crate::tile::{LANES, MAX_VECTORS, TileTarget, Write};

/// The factors of a tile: rows of `a` times columns of `b`.
#[derive(Clone, Copy, Debug)]
pub struct PairFactors<'a> {
    /// Pair `k` of row `r` is at `r * a_stride + k * a_step`.
    pub a: &'a [u32],
    /// Distance between rows of `a`.
    pub a_stride: usize,
    /// Distance between pairs of `a`.
    pub a_step: usize,
    /// The number of rows of `a`.
    pub rows: usize,
    /// Vectors of columns, a line for each pair.
    pub b: [&'a [PairLine]; MAX_VECTORS],
    /// The number of column vectors.
    pub vectors: usize,
    /// The pairs of each sum.
    pub pairs: usize,
    /// Columns of the next tile, which are prefetched while this one is computed: all vectors or one.
    pub next: &'a [&'a [PairLine]],
}

/// The instructions for pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instructions {
    /// AVX-512-BF16.
    #[cfg(target_arch = "x86_64")]
    Dot,
    /// AVX-512.
    #[cfg(target_arch = "x86_64")]
    Wide,
    /// AVX2.
    #[cfg(target_arch = "x86_64")]
    Narrow,
    Portable,
}

#[inline]
fn instructions() -> Instructions {
    #[cfg(target_arch = "x86_64")]
    match level() {
        Level::Avx512 if is_x86_feature_detected!("avx512bf16") => return Instructions::Dot,
        Level::Avx512 => return Instructions::Wide,
        Level::Avx2 => return Instructions::Narrow,
        Level::Portable => {}
    }
    Instructions::Portable
}

/// Returns whether the processor has an instruction for pairs.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_dot() -> bool {
    instructions() == Instructions::Dot
}

/// Returns the most rows and column vectors of a tile on this processor, for a product of `rows` rows.
#[must_use]
pub fn shape(rows: usize) -> (usize, usize) {
    match instructions() {
        #[cfg(target_arch = "x86_64")]
        Instructions::Dot => crate::number_tile::shape(rows),
        #[cfg(target_arch = "x86_64")]
        Instructions::Wide => match rows {
            0..=2 => (2, 4),
            3..=4 => (4, 4),
            _ => (12, 2),
        },
        _ => (4, 1),
    }
}

/// Computes a tile, pair by pair: from 0, or from the numbers of the target. `[rows, vectors, LANES]`
///
/// # Panics
/// When the tile has no rows or pairs, is larger than [`shape`] allows, or reaches beyond a slice, or when its rows
/// overlap.
pub fn multiply(target: &mut TileTarget<'_>, factors: &PairFactors<'_>) {
    let PairFactors { a, a_stride, a_step, rows, b, vectors, pairs, .. } = *factors;
    assert!(rows > 0 && pairs > 0, "a tile has rows and pairs");
    let last = (rows - 1) * a_stride + (pairs - 1) * a_step;
    assert!(last < a.len(), "rows reach beyond their slice");
    let are_inside = b[..vectors].iter().all(|columns| pairs <= columns.len());
    assert!(are_inside, "columns reach beyond their slice");
    assert!(rows == 1 || target.stride >= vectors * LANES, "rows of sums do not overlap");
    let end = (rows - 1) * target.stride + vectors * LANES;
    assert!(end <= target.data.len(), "sums reach beyond their slice");
    // SAFETY: the assertions above cover every number that a tile of this shape touches, and `instructions` has found
    // them on this processor.
    unsafe {
        match instructions() {
            #[cfg(target_arch = "x86_64")]
            Instructions::Dot => multiply_dot(target, factors),
            #[cfg(target_arch = "x86_64")]
            Instructions::Wide => multiply_wide(target, factors),
            #[cfg(target_arch = "x86_64")]
            Instructions::Narrow => multiply_narrow(target, factors),
            Instructions::Portable => multiply_portably(target, factors),
        }
    }
}

/// How instructions add the products of pairs to sixteen sums.
trait Steps {
    /// Sixteen sums.
    type Sums: Register;
    /// Sixteen pairs.
    type Pairs: Copy;
    /// # Safety
    /// The processor has the instructions, and a line can be read.
    unsafe fn load(from: *const PairLine) -> Self::Pairs;
    /// Returns the sums with the products of a pair and sixteen pairs.
    ///
    /// # Safety
    /// The processor has the instructions.
    unsafe fn plus(sums: Self::Sums, pair: u32, by: Self::Pairs) -> Self::Sums;
}

/// The instruction for two terms of sixteen sums.
#[cfg(target_arch = "x86_64")]
struct Dot;

#[cfg(target_arch = "x86_64")]
#[allow(clippy::inline_always, reason = "they are single instructions")]
impl Steps for Dot {
    type Sums = registers::Wide;
    type Pairs = __m512i;

    #[inline(always)]
    unsafe fn load(from: *const PairLine) -> __m512i {
        // SAFETY: guaranteed by the caller; a line is aligned.
        unsafe { _mm512_load_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn plus(sums: Self::Sums, pair: u32, by: __m512i) -> Self::Sums {
        // SAFETY: guaranteed by the caller; the types have the same 512 bits.
        unsafe {
            let pair = _mm512_set1_epi32(pair.cast_signed());
            let [pair, by] = [pair, by].map(|x| transmute::<__m512i, __m512bh>(x));
            _mm512_dpbf16_ps(sums, pair, by)
        }
    }
}

/// Two multiplications: a pair is split into two numbers.
struct SplitPairs<V>(PhantomData<V>);

#[allow(clippy::inline_always, reason = "it must take on the features of its caller")]
impl<V: Register> Steps for SplitPairs<V> {
    type Sums = V;
    type Pairs = [V; 2];

    #[inline(always)]
    unsafe fn load(from: *const PairLine) -> [V; 2] {
        // SAFETY: guaranteed by the caller.
        unsafe { V::load_pairs(from) }
    }

    #[inline(always)]
    unsafe fn plus(sums: V, pair: u32, by: [V; 2]) -> V {
        let [first, second] = terms(pair);
        // SAFETY: guaranteed by the caller.
        unsafe { sums.plus(first, by[0]).plus(second, by[1]) }
    }
}

/// # Safety
/// Every number that a tile of this shape touches can be read or written, and the processor has the instructions.
#[allow(clippy::inline_always, reason = "it must take on the features of its caller")]
#[inline(always)]
unsafe fn tile<S: Steps, const R: usize, const C: usize>(
    target: &mut TileTarget<'_>,
    factors: &PairFactors<'_>,
) {
    let next = factors.next;
    with_sums!(target, |sums: [[S::Sums; C]; R]| {
        // Separate loops, because a branch inside the loop costs more than it saves.
        // SAFETY: guaranteed by the caller.
        unsafe {
            match next.len() {
                0 => walk::<S, R, C, 0>(&mut sums, factors, []),
                n if n < C => walk::<S, R, C, 1>(&mut sums, factors, [next[0].as_ptr()]),
                _ => walk::<S, R, C, C>(&mut sums, factors, array::from_fn(|c| next[c].as_ptr())),
            }
        }
    });
}

/// Adds the products of all pairs, and prefetches from `next` on, one line per vector and pair.
///
/// # Safety
/// As [`tile`].
#[allow(clippy::inline_always, reason = "it must take on the features of its caller")]
#[inline(always)]
unsafe fn walk<S: Steps, const R: usize, const C: usize, const N: usize>(
    sums: &mut [[S::Sums; C]; R],
    factors: &PairFactors<'_>,
    next: [*const PairLine; N],
) {
    let b: [*const PairLine; C] = array::from_fn(|c| factors.b[c].as_ptr());
    let (mut a, a_stride) = (factors.a.as_ptr(), factors.a_stride);
    for at in 0..factors.pairs {
        // SAFETY: guaranteed by the caller.
        let columns: [S::Pairs; C] = array::from_fn(|c| unsafe { S::load(b[c].add(at)) });
        for next in next {
            S::Sums::prefetch(next.wrapping_add(at).cast());
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: as above.
            let pair = unsafe { *a.add(r * a_stride) };
            for (sum, column) in sums.iter_mut().zip(columns) {
                // SAFETY: as above.
                *sum = unsafe { S::plus(*sum, pair, column) };
            }
        }
        a = a.wrapping_add(factors.a_step);
    }
}

/// Defines the tiles of an instruction set: for each number of vectors, up to a number of rows.
macro_rules! tiles {
    ($name:ident, $steps:ty, [$($feature:literal)?], $($vectors:literal: [$($rows:literal)*]),*) => {
        /// # Safety
        /// As [`tile`].
        ///
        /// # Panics
        /// When there is no tile of this shape.
        unsafe fn $name(target: &mut TileTarget<'_>, factors: &PairFactors<'_>) {
            /// # Safety
            /// As [`tile`].
            $(#[target_feature(enable = $feature)])?
            unsafe fn shaped<S: Steps, const R: usize, const C: usize>(
                target: &mut TileTarget<'_>,
                factors: &PairFactors<'_>,
            ) {
                // SAFETY: guaranteed by the caller.
                unsafe { tile::<S, R, C>(target, factors) }
            }
            // SAFETY: guaranteed by the caller.
            unsafe { of_shape!(shaped::<$steps>(target, factors), $($vectors: [$($rows)*]),*) }
        }
    };
}

#[cfg(target_arch = "x86_64")]
tiles!(multiply_dot, Dot, ["avx512f,avx512bf16"],
    1: [1 2 3 4 5 6 7 8 9 10 11 12], 2: [1 2 3 4 5 6 7 8 9 10 11 12], 4: [1 2 3 4], 8: [1 2]);
#[cfg(target_arch = "x86_64")]
tiles!(multiply_wide, SplitPairs<registers::Wide>, ["avx512f"],
    1: [1 2 3 4 5 6 7 8 9 10 11 12], 2: [1 2 3 4 5 6 7 8 9 10 11 12], 4: [1 2 3 4]);
#[cfg(target_arch = "x86_64")]
tiles!(multiply_narrow, SplitPairs<registers::Narrow>, ["avx2,fma"], 1: [1 2 3 4]);
tiles!(multiply_portably, SplitPairs<registers::Portable>, [], 1: [1 2 3 4]);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pairs;
    use crate::tile::MAX_TILE;

    fn uneven(length: usize, seed: usize) -> Vec<u32> {
        let number = |i: usize| ((i * 37 + seed) % 41) as f32 * 0.1 - 2.0;
        (0..length).map(|i| pairs::joined(number(2 * i), number(2 * i + 1))).collect()
    }

    type Run = unsafe fn(&mut TileTarget<'_>, &PairFactors<'_>);

    /// Returns the tiles of this processor's instruction sets, and shapes that they have.
    fn sets() -> Vec<(Run, Vec<(usize, usize)>)> {
        let mut sets: Vec<(Run, Vec<(usize, usize)>)> =
            vec![(multiply_portably, vec![(1, 1), (3, 1), (4, 1)])];
        #[cfg(target_arch = "x86_64")]
        {
            let all = vec![(1, 1), (2, 4), (4, 4), (7, 2), (12, 2)];
            if level() != Level::Portable {
                sets.push((multiply_narrow, vec![(1, 1), (4, 1)]));
            }
            if level() == Level::Avx512 {
                sets.push((multiply_wide, all.clone()));
            }
            if instructions() == Instructions::Dot {
                sets.push((multiply_dot, [&all[..], &[(2, 8)]].concat()));
            }
        }
        sets
    }

    /// Every instruction set computes the same sums but for their rounding, and each of them the same bits for a row
    /// alone and among others.
    #[test]
    fn every_instruction_set_computes_the_same_tile() {
        let a = uneven(12 * 70, 1);
        let b: Vec<PairLine> = (0..8 * 70)
            .map(|at| PairLine(uneven(LANES, 7 * at + 2).try_into().expect("sixteen")))
            .collect();
        let columns: [&[PairLine]; MAX_VECTORS] = array::from_fn(|c| &b[c * 70..(c + 1) * 70]);
        for (run, shapes) in sets() {
            let of = |first: usize, rows: usize, vectors: usize, write: Write| {
                let factors = PairFactors {
                    a: &a[first * 70..],
                    a_stride: 70,
                    a_step: 1,
                    rows,
                    b: columns,
                    vectors,
                    pairs: 70,
                    next: &columns[..1],
                };
                let mut sums = [0.25; MAX_TILE];
                let mut target = TileTarget { data: &mut sums, stride: vectors * LANES, write };
                // SAFETY: the slices hold the whole tile, and the instructions are checked for.
                unsafe { run(&mut target, &factors) };
                sums
            };
            for (rows, vectors) in shapes {
                for (write, before) in [(Write::Replace, 0.0), (Write::Add, 0.25)] {
                    let sums = of(0, rows, vectors, write);
                    for row in 0..rows {
                        let alone = of(row, 1, 1, write);
                        assert_eq!(alone[..LANES], sums[row * vectors * LANES..][..LANES]);
                        for column in 0..vectors * LANES {
                            let terms = (0..70).flat_map(|at| {
                                let a = pairs::terms(a[row * 70 + at]);
                                let b = columns[column / LANES][at].0[column % LANES];
                                let b = pairs::terms(b);
                                [0, 1].map(|i| f64::from(a[i]) * f64::from(b[i]))
                            });
                            let right = before + terms.sum::<f64>();
                            let ours = f64::from(sums[row * vectors * LANES + column]);
                            assert!((ours - right).abs() < 1e-4, "{ours} {right}");
                        }
                    }
                }
            }
        }
    }
}
