//! Numbers cut in parts that a unit for bf16 can multiply, in the order in which it reads them (Henry, Tang and Heinecke,
//! *Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations*, 2019).
//!
//! An f32 has 24 bits of precision and a bf16 has 8. The nearest bf16, that of the rest and that of what is left then add up
//! to the number exactly; the first two leave at most a part in 2^16 of it.

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch, _mm512_add_epi32, _mm512_and_epi32,
    _mm512_castpd_ps, _mm512_castps_pd, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_loadu_ps,
    _mm512_mul_ps, _mm512_or_epi32, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_shuffle_f32x4, _mm512_srli_epi32, _mm512_storeu_si512, _mm512_sub_ps,
    _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};

use super::amx::SIDE;
use super::{Accuracy, Matrix};

/// How many parts a number is cut in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parts {
    /// Terms of products are right to three parts in 2^16.
    Two,
    /// Products are as right as those of f32.
    Three,
}

impl Parts {
    pub(super) fn of(accuracy: Accuracy) -> Self {
        match accuracy {
            Accuracy::Full => Self::Three,
            Accuracy::Gradient => Self::Two,
        }
    }

    fn count(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Three => 3,
        }
    }

    /// Tiles of 32 rows or columns and [`STEP`] terms: two of each part, first parts first.
    pub(super) fn step_tiles(self) -> usize {
        2 * self.count()
    }

    /// Tiles of so many rows or columns and terms.
    pub(super) fn tiles(self, count: usize, terms: usize) -> usize {
        count.div_ceil(SIDE) * terms.div_ceil(STEP) * self.step_tiles()
    }
}

/// Terms of a sum that a tile holds, in two halves.
pub(super) const STEP: usize = 32;

/// How many terms ahead memory is asked for while tiles are packed: the processor does not foresee lines that lie apart.
const AHEAD: usize = 2 * STEP;

/// Numbers in a vector.
const LANES: usize = 16;

/// A register of the unit: 16 rows of 16 pairs of bf16. A pair is a term of the first half of a step and one of the second.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Tile([[u32; LANES]; LANES]);

impl Tile {
    pub(super) const ZERO: Self = Self([[0; LANES]; LANES]);

    /// Has the tile brought into the second cache.
    pub(super) fn ask(&self) {
        for line in &self.0 {
            // SAFETY: asking for an address does nothing else.
            #[allow(unsafe_code)]
            unsafe {
                _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
            }
        }
    }
}

/// A side of a product: `terms` numbers of each of `count` rows of the left matrix, or columns of the right one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side<'a> {
    data: &'a [f32],
    count: usize,
    terms: usize,
    /// From one row or column to the next.
    stride: usize,
    /// From a term to the next.
    step: usize,
    /// What a tile has for rows.
    lines: Lines,
}

/// What a tile has for rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lines {
    /// Rows of the left matrix: the unit reads it so.
    Rows,
    /// Pairs of terms: so it reads the right one.
    Terms,
}

impl<'a> Side<'a> {
    pub(super) fn left(a: Matrix<'a>) -> Self {
        Self {
            data: a.data,
            count: a.shape.rows,
            terms: a.shape.columns,
            stride: a.shape.row_stride,
            step: a.shape.column_stride,
            lines: Lines::Rows,
        }
    }

    pub(super) fn right(b: Matrix<'a>) -> Self {
        let transposed = b.transposed();
        Self { lines: Lines::Terms, ..Self::left(transposed) }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn terms(&self) -> usize {
        self.terms
    }

    /// Packs 32 rows or columns from `first` and all steps of terms from term `start` that have room in `tiles`, each number
    /// multiplied by `scale`. What lies outside of the matrix is 0.
    pub(super) fn pack(
        &self,
        tiles: &mut [Tile],
        parts: Parts,
        first: usize,
        start: usize,
        scale: f32,
    ) {
        assert!(super::amx::is_available(), "the unit's processor has the instructions");
        for (step, tiles) in tiles.chunks_exact_mut(parts.step_tiles()).enumerate() {
            for half in 0..2 {
                let (first, term) = (first + half * LANES, start + step * STEP);
                // SAFETY: the assertion above.
                #[allow(unsafe_code)]
                unsafe {
                    self.pack_block(&mut tiles[half..], first, term, scale);
                }
            }
        }
    }

    /// Sixteen rows or columns: a part into every other tile.
    #[target_feature(enable = "avx512f")]
    fn pack_block(&self, tiles: &mut [Tile], first: usize, term: usize, scale: f32) {
        let (x, y) = (self.block(first, term), self.block(first, term + LANES));
        let scale = _mm512_set1_ps(scale);
        for line in 0..LANES {
            let mut x = _mm512_mul_ps(x[line], scale);
            let mut y = _mm512_mul_ps(y[line], scale);
            for tile in tiles.iter_mut().step_by(2) {
                let parts = (nearest(x), nearest(y));
                (x, y) = (_mm512_sub_ps(x, parts.0), _mm512_sub_ps(y, parts.1));
                store(&mut tile.0[line], pair(parts.0, parts.1));
            }
        }
    }

    /// Sixteen lines of 16 numbers.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn block(&self, first: usize, term: usize) -> [__m512; LANES] {
        let is_whole = first + LANES <= self.count && term + LANES <= self.terms;
        let (across, along) = match self.lines {
            Lines::Rows => (self.stride, self.step),
            Lines::Terms => (self.step, self.stride),
        };
        let start = first * self.stride + term * self.step;
        let ahead = AHEAD * self.step;
        match (is_whole, across, along) {
            (true, across, 1) => load(&self.data[start..], across, ahead),
            (true, 1, along) => transposed(&load(&self.data[start..], along, ahead)),
            _ => self.at_edge(first, term),
        }
    }

    /// A block that reaches beyond the matrix, or whose numbers lie apart.
    #[cold]
    #[target_feature(enable = "avx512f")]
    fn at_edge(&self, first: usize, term: usize) -> [__m512; LANES] {
        let mut numbers = [[0.0; LANES]; LANES];
        for (line, numbers) in numbers.iter_mut().enumerate() {
            for (lane, number) in numbers.iter_mut().enumerate() {
                let (i, k) = match self.lines {
                    Lines::Rows => (first + line, term + lane),
                    Lines::Terms => (first + lane, term + line),
                };
                if i < self.count && k < self.terms {
                    *number = self.data[i * self.stride + k * self.step];
                }
            }
        }
        load(numbers.as_flattened(), LANES, 0)
    }
}

/// Lines of numbers; those that lie so many numbers `ahead` are asked for.
///
/// # Panics
/// When the lines reach beyond the slice.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(data: &[f32], stride: usize, ahead: usize) -> [__m512; LANES] {
    assert!((LANES - 1) * stride + LANES <= data.len(), "a block lies inside its matrix");
    let mut lines = [_mm512_setzero_ps(); LANES];
    for (line, at) in lines.iter_mut().zip(0..) {
        // SAFETY: the assertion above; asking for an address that is none does nothing.
        #[allow(unsafe_code)]
        unsafe {
            let address = data.as_ptr().add(at * stride);
            _mm_prefetch::<_MM_HINT_T0>(address.wrapping_add(ahead).cast());
            *line = _mm512_loadu_ps(address);
        }
    }
    lines
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(line: &mut [u32; LANES], numbers: __m512i) {
    // SAFETY: a line is a vector.
    #[allow(unsafe_code)]
    unsafe {
        _mm512_storeu_si512(line.as_mut_ptr().cast(), numbers);
    }
}

/// The nearest bf16, still as an f32; of two as near, the larger in size.
#[inline]
#[target_feature(enable = "avx512f")]
fn nearest(x: __m512) -> __m512 {
    let half = _mm512_set1_epi32(1 << 15);
    let kept = _mm512_set1_epi32(!0xFFFF);
    let bits = _mm512_add_epi32(_mm512_castps_si512(x), half);
    _mm512_castsi512_ps(_mm512_and_epi32(bits, kept))
}

/// Two bf16 numbers in one lane: the first as its low half, the second as its high half.
#[inline]
#[target_feature(enable = "avx512f")]
fn pair(low: __m512, high: __m512) -> __m512i {
    let low = _mm512_srli_epi32::<16>(_mm512_castps_si512(low));
    _mm512_or_epi32(low, _mm512_castps_si512(high))
}

/// Columns as lines.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(lines: &[__m512; LANES]) -> [__m512; LANES] {
    // Within each four lines, pairs of numbers and then fours; then the quarters of a vector, by four lines and by sixteen.
    let mut fours = [_mm512_setzero_ps(); LANES];
    for at in (0..LANES).step_by(4) {
        let [a, b, c, d] = [lines[at], lines[at + 1], lines[at + 2], lines[at + 3]];
        let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
        let (ab_high, cd_high) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
        fours[at] = low_pairs(ab, cd);
        fours[at + 1] = high_pairs(ab, cd);
        fours[at + 2] = low_pairs(ab_high, cd_high);
        fours[at + 3] = high_pairs(ab_high, cd_high);
    }
    let mut columns = [_mm512_setzero_ps(); LANES];
    for i in 0..4 {
        let [a, b, c, d] = [fours[i], fours[4 + i], fours[8 + i], fours[12 + i]];
        // Quarters 0 and 2, and 1 and 3.
        let (ab_even, cd_even) =
            (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d));
        let (ab_odd, cd_odd) =
            (_mm512_shuffle_f32x4::<0xDD>(a, b), _mm512_shuffle_f32x4::<0xDD>(c, d));
        columns[i] = _mm512_shuffle_f32x4::<0x88>(ab_even, cd_even);
        columns[4 + i] = _mm512_shuffle_f32x4::<0x88>(ab_odd, cd_odd);
        columns[8 + i] = _mm512_shuffle_f32x4::<0xDD>(ab_even, cd_even);
        columns[12 + i] = _mm512_shuffle_f32x4::<0xDD>(ab_odd, cd_odd);
    }
    columns
}

#[inline]
#[target_feature(enable = "avx512f")]
fn low_pairs(a: __m512, b: __m512) -> __m512 {
    _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn high_pairs(a: __m512, b: __m512) -> __m512 {
    _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)))
}
