//! Numbers cut in parts that a unit for bf16 can multiply, in the order in which it reads them (Henry, Tang and Heinecke,
//! *Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations*, 2019).
//!
//! An f32 has 24 bits of precision and a bf16 has 8. The nearest bf16, that of the rest and that of what is left then add up
//! to the number exactly; the first two leave at most a part in 2^16 of it.

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_epi32, _mm512_and_epi32,
    _mm512_castps_si512, _mm512_castsi512_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps,
    _mm512_or_epi32, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512, _mm512_shuffle_i32x4,
    _mm512_srli_epi32, _mm512_storeu_si512, _mm512_sub_ps, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::amx::SIDE;
use super::{Accuracy, Matrix};

/// How many parts a number is cut in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SplitCount {
    /// Terms of products are right to three parts in 2^16.
    Two,
    /// Products are as right as those of f32.
    Three,
}

impl SplitCount {
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
const AHEAD: usize = STEP;

/// Numbers in a vector.
const LANES: usize = 16;

/// A register of the unit: 16 rows of 16 pairs of bf16. A pair is a term of the first half of a step and one of the second.
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

impl Lines {
    /// What a tile of the other side of a product has for rows.
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

    /// Packs 32 rows or columns from `first` and all steps of terms from term `start` that have room in `tiles`, each number
    /// multiplied by `scale`. What lies outside of the matrix is 0.
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
                // SAFETY: the assertion above.
                unsafe {
                    match parts {
                        SplitCount::Two => self.pack_tiles::<2>(tiles, first, term, scale),
                        SplitCount::Three => self.pack_tiles::<3>(tiles, first, term, scale),
                    }
                }
            }
        }
    }

    /// Sixteen rows or columns: a part into every other tile.
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

    /// What there is of 16 rows or columns and 16 terms, its `lines` so many numbers apart.
    fn patch(&self, first: usize, term: usize, across: usize, lines: Lines) -> Patch<'a> {
        let (count, terms) = (self.count.saturating_sub(first), self.terms.saturating_sub(term));
        let size = if lines == Lines::Rows { [count, terms] } else { [terms, count] };
        let data = self.data.get(first * self.stride + term * self.step..).unwrap_or(&[]);
        Patch::new(data, size, across, AHEAD * self.step)
    }

    /// A patch whose numbers lie apart.
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

/// Sixteen lines of 16 numbers, of which some may be missing and are 0.
#[derive(Clone, Copy, Debug)]
struct Patch<'a> {
    data: &'a [f32],
    /// How many lines there are.
    lines: usize,
    /// Which numbers of a line.
    mask: u16,
    /// From a line to the next.
    across: usize,
    /// How many numbers further on memory is asked for.
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
        // SAFETY: the numbers that are read lie inside the slice, as `new` has found; asking for an address that is none does
        // nothing.
        unsafe {
            let address = self.data.as_ptr().wrapping_add(at * self.across);
            _mm_prefetch::<_MM_HINT_T0>(address.wrapping_add(self.ahead).cast());
            _mm512_maskz_loadu_ps(mask, address)
        }
    }
}

/// The lines of two patches, as lines of a tile of each part.
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

/// The lines of two patches, as columns of a tile of each part.
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

/// The parts of 16 pairs of numbers.
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
    // SAFETY: a line is a vector.
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
fn transposed(lines: &[__m512i; LANES]) -> [__m512i; LANES] {
    // Within each four lines, pairs of numbers and then fours; then the quarters of a vector, by four lines and by sixteen.
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
