//! Register tiles of int8: columns with a scale for each block of terms, and rows that are rounded in the same blocks.
//!
//! The products of a block are summed as integers, and blocks in f32, in order: an element is one chain, so that a row has
//! the same bits alone and among others. Instruction sets without fused multiply-add round the chain differently.
//!
//! Processors with AVX-512-VNNI multiply four unsigned bytes by four signed ones and add the products in one instruction.
//! So bytes of columns have 128 added; what that adds to a sum depends on the row alone, and sums start from its negative.

use crate::pairs::PairLine;
use crate::tile::{LANES, MAX_VECTORS, TileTarget, Write};
use crate::vectorized;

/// The terms of a block, which have a common scale in each column and in each row.
pub const BLOCK: usize = 64;

/// Four terms of sixteen columns are a line.
const STEPS: usize = BLOCK / 4;

/// The lines of a block of sixteen columns: its terms, then the scales of the columns, as bits of f32.
pub const BLOCK_LINES: usize = STEPS + 1;

/// The words of a block of a row: its terms, four in a word; its scale, as bits of an f32; the start of its sums.
pub const BLOCK_WORDS: usize = STEPS + 2;

/// What is added to the bytes of columns.
const OFFSET: u8 = 128;

/// Returns the number of blocks of a number of terms.
#[must_use]
pub const fn blocks(terms: usize) -> usize {
    terms.div_ceil(BLOCK)
}

/// The factors of a tile: rows of `a` times columns of `b`.
#[derive(Clone, Copy, Debug)]
pub struct ByteFactors<'a> {
    /// Rows, as [`round_rows`] writes them, `blocks` times [`BLOCK_WORDS`] long.
    pub a: &'a [u32],
    /// The number of rows of `a`.
    pub rows: usize,
    /// Vectors of columns, `blocks` times [`BLOCK_LINES`] long.
    pub b: [&'a [PairLine]; MAX_VECTORS],
    /// The number of column vectors.
    pub vectors: usize,
    /// The blocks of each sum.
    pub blocks: usize,
    /// Columns of the next tile, which are prefetched while this one is computed: all vectors or one.
    pub next: &'a [&'a [PairLine]],
}

/// Rounded numbers of a block: a scale, and how many scales each number is.
struct Rounding {
    scale: f32,
    inverse: f32,
}

impl Rounding {
    /// The largest number becomes 127 scales. A number that is not finite makes the scale NaN, and with it all sums.
    #[allow(clippy::inline_always, reason = "it is called in compiled loops")]
    #[inline(always)]
    fn of(block: &[f32]) -> Self {
        let (mut largest, mut poison) = (0.0_f32, 0.0_f32);
        for x in block {
            largest = largest.max(x.abs());
            poison += x * 0.0;
        }
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        Self { scale: largest / 127.0 + poison, inverse }
    }

    /// Returns the nearest number of scales.
    #[allow(clippy::inline_always, reason = "it is called in compiled loops")]
    #[inline(always)]
    fn scales(&self, x: f32) -> i32 {
        // 1.5 * 2^23: the sum's last bits are the integer.
        const MAGIC: f32 = 12_582_912.0;
        (x * self.inverse + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()).cast_signed()
    }
}

vectorized! {
    /// Rounds the first `width` numbers of each row of `stride` numbers, block by block. The last row may be shorter than
    /// `stride`.
    pub fn round_rows(target: &mut [u32], rows: &[f32], stride: usize, width: usize) {
        let each = blocks(width) * BLOCK_WORDS;
        for (target, row) in target.chunks_exact_mut(each).zip(rows.chunks(stride)) {
            let parts = target.chunks_exact_mut(BLOCK_WORDS).zip(row[..width].chunks(BLOCK));
            for (target, block) in parts {
                let rounding = Rounding::of(block);
                let mut bytes = [0_i32; BLOCK];
                for (byte, x) in bytes.iter_mut().zip(block) {
                    *byte = rounding.scales(*x);
                }
                for (word, four) in target.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *word = u32::from_le_bytes(four.map(|byte| byte.to_le_bytes()[0]));
                }
                // Beside a scale that is NaN, bytes may be anything.
                let sum = bytes.iter().fold(0_i32, |sum, byte| sum.wrapping_add(*byte));
                target[STEPS] = rounding.scale.to_bits();
                target[STEPS + 1] = sum.wrapping_mul(-i32::from(OFFSET)).cast_unsigned();
            }
        }
    }
}

/// Writes a column of a vector: the lane of each line. The other terms of its last block are 0.
pub fn round_column(lines: &mut [PairLine], lane: usize, column: &[f32]) {
    for (lines, block) in lines.chunks_exact_mut(BLOCK_LINES).zip(column.chunks(BLOCK)) {
        let rounding = Rounding::of(block);
        let mut bytes = [OFFSET; BLOCK];
        for (byte, x) in bytes.iter_mut().zip(block) {
            *byte = rounding.scales(*x).wrapping_add(i32::from(OFFSET)).to_le_bytes()[0];
        }
        for (line, four) in lines.iter_mut().zip(bytes.as_chunks::<4>().0) {
            line.0[lane] = u32::from_le_bytes(*four);
        }
        lines[STEPS].0[lane] = rounding.scale.to_bits();
    }
}

/// Returns the numbers of a column, as they were rounded; zeros follow to the end of the last block.
pub fn column(lines: &[PairLine], lane: usize) -> impl Iterator<Item = f32> {
    lines.chunks_exact(BLOCK_LINES).flat_map(move |lines| {
        let scale = f32::from_bits(lines[STEPS].0[lane]);
        let bytes = lines[..STEPS].iter().flat_map(move |line| line.0[lane].to_le_bytes());
        bytes.map(move |byte| (f32::from(byte) - f32::from(OFFSET)) * scale)
    })
}

#[cfg(target_arch = "x86_64")]
fn has_dot() -> bool {
    crate::simd::level() == crate::simd::Level::Avx512 && is_x86_feature_detected!("avx512vnni")
}

/// Returns the most rows and column vectors of a tile on this processor, for a product of `rows` rows.
#[must_use]
pub fn shape(rows: usize) -> (usize, usize) {
    #[cfg(target_arch = "x86_64")]
    if has_dot() {
        return match rows {
            0..=2 => (2, 8),
            3..=4 => (4, 4),
            _ => (12, 2),
        };
    }
    let _ = rows;
    (4, 1)
}

/// Computes a tile, block by block: from 0, or from the numbers of the target. `[rows, vectors, LANES]`
///
/// # Panics
/// When the tile has no rows or blocks, is larger than [`shape`] allows, or reaches beyond a slice, or when its rows
/// overlap.
pub fn multiply(target: &mut TileTarget<'_>, factors: &ByteFactors<'_>) {
    let ByteFactors { a, rows, b, vectors, blocks, .. } = *factors;
    assert!(rows > 0 && blocks > 0, "a tile has rows and blocks");
    assert!(rows * blocks * BLOCK_WORDS <= a.len(), "rows reach beyond their slice");
    let are_inside = b[..vectors].iter().all(|columns| blocks * BLOCK_LINES <= columns.len());
    assert!(are_inside, "columns reach beyond their slice");
    assert!(rows == 1 || target.stride >= vectors * LANES, "rows of sums do not overlap");
    let end = (rows - 1) * target.stride + vectors * LANES;
    assert!(end <= target.data.len(), "sums reach beyond their slice");
    #[cfg(target_arch = "x86_64")]
    if has_dot() {
        // SAFETY: the assertions above cover every number that a tile of this shape touches, and `has_dot` has found the
        // instructions on this processor.
        return unsafe { dot::run(target, factors) };
    }
    multiply_portably(target, factors);
}

vectorized! {
    /// A tile without special instructions.
    fn multiply_portably(target: &mut TileTarget<'_>, factors: &ByteFactors<'_>) {
        let ByteFactors { a, rows, b, vectors, blocks, .. } = *factors;
        let each = blocks * BLOCK_WORDS;
        for row in 0..rows {
            let words = &a[row * each..][..each];
            for (vector, lines) in b[..vectors].iter().enumerate() {
                let sums = &mut target.data[row * target.stride + vector * LANES..][..LANES];
                if target.write == Write::Replace {
                    sums.fill(0.0);
                }
                let parts = words.chunks_exact(BLOCK_WORDS).zip(lines.chunks_exact(BLOCK_LINES));
                for (words, lines) in parts {
                    let mut whole = [words[STEPS + 1].cast_signed(); LANES];
                    for (word, line) in words[..STEPS].iter().zip(lines) {
                        let terms = word.to_le_bytes().map(|byte| i32::from(byte.cast_signed()));
                        for (whole, four) in whole.iter_mut().zip(line.0) {
                            for (byte, term) in four.to_le_bytes().into_iter().zip(terms) {
                                *whole = whole.wrapping_add(i32::from(byte) * term);
                            }
                        }
                    }
                    let scale = f32::from_bits(words[STEPS]);
                    for lane in 0..LANES {
                        let scale = f32::from_bits(lines[STEPS].0[lane]) * scale;
                        sums[lane] += whole[lane] as f32 * scale;
                    }
                }
            }
        }
    }
}

/// AVX-512-VNNI: an instruction for four terms of sixteen sums.
#[cfg(target_arch = "x86_64")]
mod dot {
    use std::arch::x86_64::{
        __m512, __m512i, _mm512_castsi512_ps, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32,
        _mm512_fmadd_ps, _mm512_load_si512, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps,
    };
    use std::array;

    use super::{BLOCK_LINES, BLOCK_WORDS, ByteFactors, LANES, PairLine, STEPS, TileTarget, Write};
    use crate::registers::{Register, of_shape, with_sums};

    /// # Safety
    /// Every number that a tile of this shape touches can be read or written, and the processor has the instructions.
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn tile<const R: usize, const C: usize>(
        target: &mut TileTarget<'_>,
        factors: &ByteFactors<'_>,
    ) {
        let next = factors.next;
        with_sums!(target, |sums: [[__m512; C]; R]| {
            // SAFETY: guaranteed by the caller.
            unsafe {
                match next.len() {
                    0 => walk::<R, C, 0>(&mut sums, factors, []),
                    n if n < C => walk::<R, C, 1>(&mut sums, factors, [next[0].as_ptr()]),
                    _ => walk::<R, C, C>(&mut sums, factors, array::from_fn(|c| next[c].as_ptr())),
                }
            }
        });
    }

    /// Adds the products of all blocks, and prefetches from `next` on, one line per vector and step.
    ///
    /// # Safety
    /// As [`tile`].
    #[allow(clippy::inline_always, reason = "it must take on the features of its caller")]
    #[inline(always)]
    unsafe fn walk<const R: usize, const C: usize, const N: usize>(
        sums: &mut [[__m512; C]; R],
        factors: &ByteFactors<'_>,
        next: [*const PairLine; N],
    ) {
        let each = factors.blocks * BLOCK_WORDS;
        for block in 0..factors.blocks {
            let lines: [*const PairLine; C] =
                array::from_fn(|c| factors.b[c].as_ptr().wrapping_add(block * BLOCK_LINES));
            let words: [*const u32; R] =
                array::from_fn(|r| factors.a.as_ptr().wrapping_add(r * each + block * BLOCK_WORDS));
            // SAFETY: guaranteed by the caller; a line is aligned.
            unsafe {
                let splat = |word: *const u32| _mm512_set1_epi32((*word).cast_signed());
                let mut whole: [[__m512i; C]; R] =
                    array::from_fn(|r| [splat(words[r].add(STEPS + 1)); C]);
                for step in 0..STEPS {
                    let columns: [__m512i; C] =
                        array::from_fn(|c| _mm512_load_si512(lines[c].add(step).cast()));
                    for next in next {
                        let line = next.wrapping_add(block * BLOCK_LINES + step);
                        __m512::prefetch(line.cast());
                    }
                    for (whole, words) in whole.iter_mut().zip(words) {
                        let terms = splat(words.add(step));
                        for (whole, column) in whole.iter_mut().zip(columns) {
                            *whole = _mm512_dpbusd_epi32(*whole, column, terms);
                        }
                    }
                }
                let scales: [__m512; C] = array::from_fn(|c| {
                    _mm512_castsi512_ps(_mm512_load_si512(lines[c].add(STEPS).cast()))
                });
                for ((sums, whole), words) in sums.iter_mut().zip(whole).zip(words) {
                    let scale = _mm512_set1_ps(f32::from_bits(*words.add(STEPS)));
                    for ((sum, whole), scales) in sums.iter_mut().zip(whole).zip(scales) {
                        let scale = _mm512_mul_ps(scales, scale);
                        *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), scale, *sum);
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`tile`].
    ///
    /// # Panics
    /// When there is no tile of this shape.
    pub(super) unsafe fn run(target: &mut TileTarget<'_>, factors: &ByteFactors<'_>) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            of_shape!(tile(target, factors),
                1: [1 2 3 4 5 6 7 8 9 10 11 12], 2: [1 2 3 4 5 6 7 8 9 10 11 12], 4: [1 2 3 4], 8: [1 2]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tile::MAX_TILE;

    fn uneven(length: usize, seed: usize) -> Vec<f32> {
        (0..length).map(|i| ((i * 37 + seed * 11) % 101) as f32 * 0.02 - 1.0).collect()
    }

    fn packed(columns: &[Vec<f32>], width: usize) -> Vec<PairLine> {
        let mut lines = vec![PairLine::ZERO; blocks(width) * BLOCK_LINES];
        columns.iter().enumerate().for_each(|(lane, x)| round_column(&mut lines, lane, x));
        lines
    }

    /// The numbers that a rounded row stands for.
    fn numbers(words: &[u32]) -> Vec<f64> {
        let block = |words: &[u32]| {
            let scale = f64::from(f32::from_bits(words[STEPS]));
            let bytes = words[..STEPS].iter().flat_map(|word| word.to_le_bytes());
            bytes.map(|byte| f64::from(byte.cast_signed()) * scale).collect::<Vec<_>>()
        };
        words.chunks_exact(BLOCK_WORDS).flat_map(block).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]

        /// A tile is the product of the rounded numbers, with and without special instructions.
        #[test]
        fn a_tile_multiplies_the_rounded_numbers(
            width in 1_usize..200,
            rows in 1_usize..13,
            more: bool,
            adds: bool,
        ) {
            let vectors = fitting(shape(rows).1, more);
            let rows = rows.min(shape(rows).0);
            let x = uneven(rows * width, 1);
            let columns: Vec<Vec<f32>> = (0..16).map(|lane| uneven(width, lane + 3)).collect();
            let lines = packed(&columns, width);
            let mut a = vec![0; rows * blocks(width) * BLOCK_WORDS];
            round_rows(&mut a, &x, width, width);
            let mut b: [&[PairLine]; MAX_VECTORS] = [&[]; MAX_VECTORS];
            b[..vectors].fill(&lines);
            let blocks = blocks(width);
            let factors = ByteFactors { a: &a, rows, b, vectors, blocks, next: &b[..1] };
            let write = if adds { Write::Add } else { Write::Replace };
            for multiply in [multiply, multiply_portably] {
                let mut sums = [0.25; MAX_TILE];
                let stride = vectors * LANES;
                multiply(&mut TileTarget { data: &mut sums, stride, write }, &factors);
                for row in 0..rows {
                    let words = &a[row * blocks * BLOCK_WORDS..][..blocks * BLOCK_WORDS];
                    for place in 0..stride {
                        let by = column(&lines, place % LANES);
                        let terms = numbers(words).into_iter().zip(by).map(|(a, b)| a * f64::from(b));
                        let right = terms.sum::<f64>() + if adds { 0.25 } else { 0.0 };
                        let ours = f64::from(sums[row * stride + place]);
                        prop_assert!((ours - right).abs() < 1e-4, "{ours} {right}");
                    }
                }
            }
        }

        /// A rounded number is off by half a scale at most, and a scale is a 127th of the block's largest number.
        #[test]
        fn rounding_keeps_numbers_to_a_254th_of_the_largest(
            x in proptest::collection::vec(-3.0_f32..3.0, 1..150),
        ) {
            let mut lines = vec![PairLine::ZERO; blocks(x.len()) * BLOCK_LINES];
            round_column(&mut lines, 5, &x);
            let rounded: Vec<f32> = column(&lines, 5).collect();
            let mut words = vec![0; blocks(x.len()) * BLOCK_WORDS];
            round_rows(&mut words, &x, x.len(), x.len());
            for (index, block) in x.chunks(BLOCK).enumerate() {
                let largest = block.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                for (place, x) in block.iter().enumerate() {
                    let at = index * BLOCK + place;
                    prop_assert!((rounded[at] - x).abs() <= largest / 253.9);
                    prop_assert!((numbers(&words)[at] - f64::from(rounded[at])).abs() < 1e-6);
                }
            }
            prop_assert!(rounded[x.len()..].iter().all(|x| *x == 0.0));
        }
    }

    fn fitting(most: usize, more: bool) -> usize {
        if more { most } else { 1 }
    }

    #[test]
    fn numbers_that_are_not_finite_reach_every_sum() {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = uneven(70, 1);
            x[66] = wrong;
            let mut words = vec![0; blocks(70) * BLOCK_WORDS];
            round_rows(&mut words, &x, 70, 70);
            assert!(f32::from_bits(words[BLOCK_WORDS + STEPS]).is_nan());
            let lines = packed(&[x], 70);
            assert!(column(&lines, 0).any(f32::is_nan));
        }
    }
}
