//! Products whose elements are sums in one order, whatever is computed beside them.
//!
//! Each element is one chain of multiply-adds over the inner index, from the first term to the last, in a lane of a register
//! of its own. How many rows or columns share the registers changes nothing in it, so that one row and a thousand give the
//! same bits.

use std::array;

use crate::simd::{Level, level};

/// Numbers in a vector.
pub(crate) const LANES: usize = 16;

/// The most vectors of columns that a tile has.
pub(crate) const MAX_VECTORS: usize = 8;

/// The most numbers that a tile has.
pub(crate) const MAX_TILE: usize = 24 * LANES;

/// Sixteen numbers at an address that loads of a whole vector like.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Block(pub(crate) [f32; LANES]);

impl Block {
    pub(crate) const ZERO: Self = Self([0.0; LANES]);
}

/// The numbers of blocks in a row.
pub(crate) fn numbers(blocks: &[Block]) -> &[f32] {
    // SAFETY: a block is 16 numbers without padding, by its representation.
    #[allow(unsafe_code)]
    unsafe {
        std::slice::from_raw_parts(blocks.as_ptr().cast(), blocks.len() * LANES)
    }
}

/// The numbers of blocks in a row, to be written.
pub(crate) fn numbers_mut(blocks: &mut [Block]) -> &mut [f32] {
    // SAFETY: as above, and every bit pattern is a number.
    #[allow(unsafe_code)]
    unsafe {
        std::slice::from_raw_parts_mut(blocks.as_mut_ptr().cast(), blocks.len() * LANES)
    }
}

/// Rows and vectors of columns that a tile can have on this processor, for so many rows of work: enough sums side by side to
/// keep its units busy, and few enough for its registers.
pub(crate) fn shape(rows: usize) -> (usize, usize) {
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

/// Vectors of columns: for each, its numbers for the first term; those for term `k` follow at `k * b_stride`.
pub(crate) type Columns<'a> = [&'a [f32]; MAX_VECTORS];

/// A tile of a product: rows of `a` times columns of `b`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factors<'a> {
    /// Term `k` of row `r` is at `r * a_stride + k * a_step`.
    pub(crate) a: &'a [f32],
    pub(crate) a_stride: usize,
    pub(crate) a_step: usize,
    pub(crate) rows: usize,
    /// Where the terms lie, so many of them in each; the last may hold fewer.
    pub(crate) b: &'a [Columns<'a>],
    pub(crate) terms_each: usize,
    pub(crate) b_stride: usize,
    /// How many columns there are.
    pub(crate) vectors: usize,
    pub(crate) terms: usize,
    /// Columns that will be wanted next, with the same stride: their memory is asked for while this is computed.
    pub(crate) next: Option<&'a Columns<'a>>,
}

/// Adds the product to `sums`, term by term. `[rows, vectors, LANES]`
///
/// # Panics
/// When the tile is larger than [`shape`] allows, or reaches beyond a slice.
pub(crate) fn add_product(sums: &mut [f32; MAX_TILE], factors: &Factors<'_>) {
    let Factors { a, a_stride, a_step, rows, b, terms_each, b_stride, vectors, terms, .. } =
        *factors;
    if rows == 0 || terms == 0 {
        return;
    }
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
    let sums = sums.as_mut_ptr();
    // SAFETY: the assertions above cover every number that a tile of this shape reads, the tables hold only tiles of at most
    // `MAX_TILE` numbers, and `level` has found the instructions.
    #[allow(unsafe_code)]
    unsafe {
        match level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => wide::run(sums, factors),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => narrow::run(sums, factors),
            Level::Portable => portable::run(sums, factors),
        }
    }
}

/// Sixteen sums in registers.
trait Vector: Copy {
    /// # Safety
    /// The processor has the instructions, and 16 numbers can be read.
    #[allow(unsafe_code)]
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// The processor has the instructions, and 16 numbers can be written.
    #[allow(unsafe_code)]
    unsafe fn store(self, to: *mut f32);
    /// `self + x * by`, rounded once where the processor can.
    ///
    /// # Safety
    /// The processor has the instructions.
    #[allow(unsafe_code)]
    unsafe fn plus(self, x: f32, by: Self) -> Self;
    /// Asks for the memory at an address, which may be any.
    fn ask(address: *const f32);
}

/// # Safety
/// Everything that a tile of this shape touches can be, and the processor has the instructions.
#[allow(unsafe_code)]
#[allow(clippy::inline_always, reason = "it must take on the features of its caller")]
#[inline(always)]
unsafe fn tile<V: Vector, const R: usize, const C: usize>(sums: *mut f32, factors: &Factors<'_>) {
    // SAFETY: promised by the caller, here and below.
    unsafe {
        let at = |r: usize, c: usize| sums.add((r * C + c) * LANES);
        let mut kept: [[V; C]; R] = array::from_fn(|r| array::from_fn(|c| V::load(at(r, c))));
        let Factors { a, a_stride, a_step, b, terms_each, b_stride, terms, next, .. } = *factors;
        let (mut a, mut left) = (a.as_ptr(), terms);
        for (index, columns) in b.iter().enumerate() {
            let next = b.get(index + 1).or(next);
            let asked = next.map(|next| array::from_fn::<*const f32, C, _>(|c| next[c].as_ptr()));
            let b: [*const f32; C] = array::from_fn(|c| columns[c].as_ptr());
            let mut offset = 0;
            for _ in 0..terms_each.min(left) {
                let columns: [V; C] = array::from_fn(|c| V::load(b[c].add(offset)));
                for asked in asked.iter().flatten() {
                    V::ask(asked.wrapping_add(offset));
                }
                for (r, sums) in kept.iter_mut().enumerate() {
                    let x = *a.add(r * a_stride);
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = sum.plus(x, column);
                    }
                }
                a = a.wrapping_add(a_step);
                offset += b_stride;
            }
            left = left.saturating_sub(terms_each);
        }
        for (r, sums) in kept.iter().enumerate() {
            for (c, sum) in sums.iter().enumerate() {
                sum.store(at(r, c));
            }
        }
    }
}

/// The tiles of an instruction set: those of each number of vectors, up to so many rows.
macro_rules! tiles {
    ($vector:ty, [$($feature:literal)?], $($vectors:literal: [$($rows:literal)*]),*) => {
        /// # Safety
        /// As [`super::tile`].
        #[allow(unsafe_code)]
        $(#[target_feature(enable = $feature)])?
        unsafe fn shaped<const R: usize, const C: usize>(sums: *mut f32, factors: &Factors<'_>) {
            // SAFETY: promised by the caller.
            unsafe { tile::<$vector, R, C>(sums, factors) }
        }

        /// # Safety
        /// As [`super::tile`].
        ///
        /// # Panics
        /// When there is no tile of this shape.
        #[allow(unsafe_code)]
        pub(super) unsafe fn run(sums: *mut f32, factors: &Factors<'_>) {
            let Factors { rows, vectors, .. } = *factors;
            // SAFETY: promised by the caller.
            unsafe {
                match (vectors, rows) {
                    $($(($vectors, $rows) => shaped::<$rows, $vectors>(sums, factors),)*)*
                    _ => panic!("there is no tile of {rows} rows and {vectors} vectors"),
                }
            }
        }
    };
}

/// AVX-512: 32 registers of 16 numbers.
#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::{
        __m512, _MM_HINT_T0, _mm_prefetch, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps,
        _mm512_storeu_ps,
    };

    use super::{Factors, Vector, tile};

    #[allow(unsafe_code)]
    #[allow(clippy::inline_always, reason = "they are single instructions")]
    impl Vector for __m512 {
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: promised by the caller.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: promised by the caller.
            unsafe { _mm512_storeu_ps(to, self) }
        }

        #[inline(always)]
        unsafe fn plus(self, x: f32, by: Self) -> Self {
            // SAFETY: promised by the caller.
            unsafe { _mm512_fmadd_ps(_mm512_set1_ps(x), by, self) }
        }

        #[inline(always)]
        fn ask(address: *const f32) {
            // SAFETY: asking for an address that is none does nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
        }
    }

    tiles!(__m512, ["avx512f"],
        1: [1 2 3 4 5 6 7 8 9 10 11 12], 2: [1 2 3 4 5 6 7 8 9 10 11 12], 4: [1 2 3 4], 8: [1 2]);
}

/// AVX2: 16 registers of 8 numbers.
#[cfg(target_arch = "x86_64")]
mod narrow {
    use std::arch::x86_64::{
        __m256, _MM_HINT_T0, _mm_prefetch, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps,
        _mm256_storeu_ps,
    };

    use super::{Factors, Vector, tile};

    #[allow(unsafe_code)]
    #[allow(clippy::inline_always, reason = "they are single instructions")]
    impl Vector for [__m256; 2] {
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: promised by the caller.
            unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: promised by the caller.
            unsafe {
                _mm256_storeu_ps(to, self[0]);
                _mm256_storeu_ps(to.add(8), self[1]);
            }
        }

        #[inline(always)]
        unsafe fn plus(self, x: f32, by: Self) -> Self {
            // SAFETY: promised by the caller.
            unsafe {
                let x = _mm256_set1_ps(x);
                [_mm256_fmadd_ps(x, by[0], self[0]), _mm256_fmadd_ps(x, by[1], self[1])]
            }
        }

        #[inline(always)]
        fn ask(address: *const f32) {
            // SAFETY: asking for an address that is none does nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
        }
    }

    tiles!([__m256; 2], ["avx2,fma"], 1: [1 2 3], 2: [1 2 3], 4: [1]);
}

/// What the compiler makes of arrays.
mod portable {
    use super::{Factors, LANES, Vector, tile};

    #[allow(unsafe_code)]
    #[allow(clippy::inline_always, reason = "they are the body of a loop")]
    impl Vector for [f32; LANES] {
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: promised by the caller.
            unsafe { from.cast::<Self>().read() }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: promised by the caller.
            unsafe { to.cast::<Self>().write(self) }
        }

        #[inline(always)]
        unsafe fn plus(mut self, x: f32, by: Self) -> Self {
            for (sum, by) in self.iter_mut().zip(by) {
                // Without the instruction a fused operation is a call of a function.
                *sum = if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
                    x.mul_add(by, *sum)
                } else {
                    x * by + *sum
                };
            }
            self
        }

        #[inline(always)]
        fn ask(_address: *const f32) {}
    }

    tiles!([f32; LANES], [], 1: [1 2 3], 2: [1 2 3], 4: [1]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uneven(length: usize) -> Vec<f32> {
        (0..length).map(|i| ((i * 37) % 41) as f32 * 0.1 - 2.0).collect()
    }

    /// Whatever the instructions, and however the terms are cut, an element is the same chain; without fused operations it is
    /// close to it.
    #[test]
    fn every_instruction_set_computes_the_same_tile() {
        let (a, b) = (uneven(12 * 80), uneven(8 * 100 * LANES));
        let pieces: Vec<Columns<'_>> =
            (0..3).map(|piece| array::from_fn(|c| &b[(c * 100 + piece * 33) * LANES..])).collect();
        let shapes = [(1, 4), (1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2)];
        for (rows, vectors) in shapes {
            let whole = Factors {
                a: &a,
                a_stride: 80,
                a_step: 1,
                rows,
                b: &pieces[..1],
                terms_each: 70,
                b_stride: LANES,
                vectors,
                terms: 70,
                next: None,
            };
            let cut = Factors { b: &pieces, terms_each: 33, next: Some(&pieces[0]), ..whole };
            let of = |run: &dyn Fn(&mut [f32; MAX_TILE])| {
                let mut sums = [0.25; MAX_TILE];
                run(&mut sums);
                sums
            };
            let best = of(&|sums| add_product(sums, &whole));
            assert_eq!(best, of(&|sums| add_product(sums, &cut)));
            // SAFETY: the slices hold all of the tile, and the processor is asked for its instructions.
            #[allow(unsafe_code)]
            let plain = of(&|sums| unsafe { portable::run(sums.as_mut_ptr(), &cut) });
            assert!(best.iter().zip(plain).all(|(a, b)| (a - b).abs() < 1e-3));
            #[cfg(target_arch = "x86_64")]
            if level() != Level::Portable {
                // SAFETY: as above.
                #[allow(unsafe_code)]
                let narrow = of(&|sums| unsafe { narrow::run(sums.as_mut_ptr(), &cut) });
                assert_eq!(best, narrow);
            }
        }
    }
}
