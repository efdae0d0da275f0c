//! Splits f32 numbers into bf16 parts, in the order in which the matrix unit reads them (Henry, Tang and Heinecke,
//! *Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations*, 2019).
//!
//! An f32 has 24 bits of precision and a bf16 has 8. Three parts (the nearest bf16, the nearest bf16 of the rest, and
//! what is left) add up to the number exactly; the first two leave an error of at most one part in 2^16.

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_epi32, _mm512_and_epi32,
    _mm512_castps_si512, _mm512_castsi512_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps,
    _mm512_or_epi32, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512, _mm512_shuffle_i32x4,
    _mm512_srli_epi32, _mm512_storeu_si512, _mm512_sub_ps, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::amx::SIDE;
use super::{Accuracy, Matrix};

/// The number of bf16 parts that an f32 is split into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SplitCount {
    /// Numbers are rounded to bf16.
    One,
    /// Terms of products are accurate to three parts in 2^16.
    Two,
    /// Products are as accurate as those of f32.
    Three,
}

impl SplitCount {
    pub(super) fn of(accuracy: Accuracy) -> Self {
        match accuracy {
            Accuracy::Full => Self::Three,
            Accuracy::Gradient => Self::Two,
            Accuracy::Bf16 => Self::One,
        }
    }

    fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Three => 3,
        }
    }

    /// Returns the tiles of 32 rows or columns and [`STEP`] terms: two for each part, in order of parts.
    pub(super) fn step_tiles(self) -> usize {
        2 * self.count()
    }

    /// Returns the tiles of `count` rows or columns and `terms` terms.
    pub(super) fn tiles(self, count: usize, terms: usize) -> usize {
        count.div_ceil(SIDE) * terms.div_ceil(STEP) * self.step_tiles()
    }
}

/// The terms of a sum that a tile holds, in two halves.
pub(super) const STEP: usize = 32;

/// The prefetch distance during packing, in terms: the hardware does not prefetch lines that lie apart.
const AHEAD: usize = STEP;

/// Numbers in a vector.
const LANES: usize = 16;

/// A tile register: 16 rows of 16 pairs of bf16. A pair is one term of the first half of a step and one of the second.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Tile([[u32; LANES]; LANES]);

impl Tile {
    pub(super) const ZERO: Self = Self([[0; LANES]; LANES]);
}

/// A side of a product: `terms` numbers of each of `count` rows of the left matrix, or columns of the right one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side<'a> {
    data: &'a [f32],
    count: usize,
    terms: usize,
    /// Distance between rows or columns.
    stride: usize,
    /// Distance between terms.
    step: usize,
    /// What the rows of a tile hold.
    lines: Lines,
}

/// What the rows of a tile hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lines {
    /// Rows of the left matrix.
    Rows,
    /// Pairs of terms, for the right matrix.
    Terms,
}

impl Lines {
    /// Returns the layout of the product's other side.
    fn other(self) -> Self {
        match self {
            Self::Rows => Self::Terms,
            Self::Terms => Self::Rows,
        }
    }
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

    /// Packs 32 rows or columns from `first` on, and as many steps of terms from `start` on as fit into `tiles`, each
    /// number multiplied by `scale`. Numbers outside the matrix are 0.
    pub(super) fn pack(
        &self,
        tiles: &mut [Tile],
        parts: SplitCount,
        first: usize,
        start: usize,
        scale: f32,
    ) {
        assert!(super::amx::is_available(), "the unit's processor has the instructions");
        for (step, tiles) in tiles.chunks_exact_mut(parts.step_tiles()).enumerate() {
            for half in 0..2 {
                let (first, term) = (first + half * LANES, start + step * STEP);
                let tiles = &mut tiles[half..];
                // SAFETY: the assertion above ensures AVX-512.
                unsafe {
                    match parts {
                        SplitCount::One => self.pack_tiles::<1>(tiles, first, term, scale),
                        SplitCount::Two => self.pack_tiles::<2>(tiles, first, term, scale),
                        SplitCount::Three => self.pack_tiles::<3>(tiles, first, term, scale),
                    }
                }
            }
        }
    }

    /// Packs sixteen rows or columns: each part into every other tile.
    #[target_feature(enable = "avx512f")]
    fn pack_tiles<const PARTS: usize>(
        &self,
        tiles: &mut [Tile],
        first: usize,
        term: usize,
        scale: f32,
    ) {
        let scale = _mm512_set1_ps(scale);
        let terms = [term, term + LANES];
        let (along_rows, along_terms) = ((self.stride, self.step), (self.step, self.stride));
        let (across, along) = if self.lines == Lines::Rows { along_rows } else { along_terms };
        if along == 1 {
            let patches = terms.map(|term| self.patch(first, term, across, self.lines));
            put_lines::<PARTS>(tiles, patches, scale);
        } else if across == 1 {
            let patches = terms.map(|term| self.patch(first, term, along, self.lines.other()));
            put_columns::<PARTS>(tiles, patches, scale);
        } else {
            let numbers = terms.map(|term| self.gathered(first, term));
            put_lines::<PARTS>(tiles, numbers.each_ref().map(Patch::of), scale);
        }
    }

    /// Returns the patch of 16 rows or columns and 16 terms, with its lines `across` numbers apart.
    fn patch(&self, first: usize, term: usize, across: usize, lines: Lines) -> Patch<'a> {
        let (count, terms) = (self.count.saturating_sub(first), self.terms.saturating_sub(term));
        let size = if lines == Lines::Rows { [count, terms] } else { [terms, count] };
        let data = self.data.get(first * self.stride + term * self.step..).unwrap_or(&[]);
        Patch::new(data, size, across, AHEAD * self.step)
    }

    /// Gathers a patch whose numbers are not contiguous.
    #[cold]
    fn gathered(&self, first: usize, term: usize) -> [[f32; LANES]; LANES] {
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
        numbers
    }
}

/// Sixteen lines of 16 numbers; missing numbers read as 0.
#[derive(Clone, Copy, Debug)]
struct Patch<'a> {
    data: &'a [f32],
    /// The number of lines.
    lines: usize,
    /// The numbers that each line has.
    mask: u16,
    /// Distance between lines.
    across: usize,
    /// The prefetch distance, in numbers.
    ahead: usize,
}

impl<'a> Patch<'a> {
    /// # Panics
    /// When the lines reach beyond the slice.
    fn new(data: &'a [f32], size: [usize; 2], across: usize, ahead: usize) -> Self {
        let [lines, width] = size.map(|size| size.min(LANES));
        let length = if lines.min(width) == 0 { 0 } else { (lines - 1) * across + width };
        assert!(length <= data.len(), "a patch lies inside its matrix");
        let mask = u16::MAX.checked_shr((LANES - width) as u32).unwrap_or(0);
        Self { data, lines, mask, across, ahead }
    }

    fn of(numbers: &'a [[f32; LANES]; LANES]) -> Self {
        Self::new(numbers.as_flattened(), [LANES, LANES], LANES, 0)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn line(&self, at: usize) -> __m512 {
        let mask = if at < self.lines { self.mask } else { 0 };
        // SAFETY: `new` ensures that the numbers lie inside the slice; a prefetch of an invalid address does nothing.
        unsafe {
            let address = self.data.as_ptr().wrapping_add(at * self.across);
            _mm_prefetch::<_MM_HINT_T0>(address.wrapping_add(self.ahead).cast());
            _mm512_maskz_loadu_ps(mask, address)
        }
    }
}

/// Writes the lines of two patches as lines of one tile per part.
#[inline]
#[target_feature(enable = "avx512f")]
fn put_lines<const PARTS: usize>(tiles: &mut [Tile], [x, y]: [Patch<'_>; 2], scale: __m512) {
    for line in 0..LANES {
        let parts = cut::<PARTS>([x.line(line), y.line(line)], scale);
        for (tile, part) in tiles.iter_mut().step_by(2).zip(parts) {
            store(&mut tile.0[line], part);
        }
    }
}

/// Writes the lines of two patches as columns of one tile per part.
#[inline]
#[target_feature(enable = "avx512f")]
fn put_columns<const PARTS: usize>(tiles: &mut [Tile], [x, y]: [Patch<'_>; 2], scale: __m512) {
    let mut columns = [[_mm512_setzero_si512(); LANES]; PARTS];
    for at in 0..LANES {
        let parts = cut::<PARTS>([x.line(at), y.line(at)], scale);
        for (columns, part) in columns.iter_mut().zip(parts) {
            columns[at] = part;
        }
    }
    for (tile, columns) in tiles.iter_mut().step_by(2).zip(&columns) {
        for (line, numbers) in tile.0.iter_mut().zip(transposed(columns)) {
            store(line, numbers);
        }
    }
}

/// Splits 16 pairs of numbers into parts.
#[inline]
#[target_feature(enable = "avx512f")]
fn cut<const PARTS: usize>([x, y]: [__m512; 2], scale: __m512) -> [__m512i; PARTS] {
    let (mut x, mut y) = (_mm512_mul_ps(x, scale), _mm512_mul_ps(y, scale));
    let mut parts = [_mm512_setzero_si512(); PARTS];
    for part in &mut parts {
        let (first, second) = (nearest(x), nearest(y));
        (x, y) = (_mm512_sub_ps(x, first), _mm512_sub_ps(y, second));
        *part = pair(first, second);
    }
    parts
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(line: &mut [u32; LANES], numbers: __m512i) {
    // SAFETY: a line is one vector.
    unsafe {
        _mm512_storeu_si512(line.as_mut_ptr().cast(), numbers);
    }
}

/// Rounds to the nearest bf16, as an f32; ties round away from 0.
#[inline]
#[target_feature(enable = "avx512f")]
fn nearest(x: __m512) -> __m512 {
    let half = _mm512_set1_epi32(1 << 15);
    let kept = _mm512_set1_epi32(!0xFFFF);
    let bits = _mm512_add_epi32(_mm512_castps_si512(x), half);
    _mm512_castsi512_ps(_mm512_and_epi32(bits, kept))
}

/// Packs two bf16 numbers into each lane: the first in the low half, the second in the high half.
#[inline]
#[target_feature(enable = "avx512f")]
fn pair(low: __m512, high: __m512) -> __m512i {
    let low = _mm512_srli_epi32::<16>(_mm512_castps_si512(low));
    _mm512_or_epi32(low, _mm512_castps_si512(high))
}

/// Transposes 16 by 16 numbers.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(lines: &[__m512i; LANES]) -> [__m512i; LANES] {
    // Within each four lines, interleaves pairs of numbers, then fours; then quarters of vectors, across four lines and
    // across sixteen.
    let mut fours = [_mm512_setzero_si512(); LANES];
    for at in (0..LANES).step_by(4) {
        let [a, b, c, d] = [lines[at], lines[at + 1], lines[at + 2], lines[at + 3]];
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        fours[at] = _mm512_unpacklo_epi64(ab, cd);
        fours[at + 1] = _mm512_unpackhi_epi64(ab, cd);
        fours[at + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
        fours[at + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
    }
    let mut columns = [_mm512_setzero_si512(); LANES];
    for i in 0..4 {
        let [a, b, c, d] = [fours[i], fours[4 + i], fours[8 + i], fours[12 + i]];
        // Quarters 0 and 2, and 1 and 3.
        let (ab_even, cd_even) =
            (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d));
        let (ab_odd, cd_odd) =
            (_mm512_shuffle_i32x4::<0xDD>(a, b), _mm512_shuffle_i32x4::<0xDD>(c, d));
        columns[i] = _mm512_shuffle_i32x4::<0x88>(ab_even, cd_even);
        columns[4 + i] = _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd);
        columns[8 + i] = _mm512_shuffle_i32x4::<0xDD>(ab_even, cd_even);
        columns[12 + i] = _mm512_shuffle_i32x4::<0xDD>(ab_odd, cd_odd);
    }
    columns
}
