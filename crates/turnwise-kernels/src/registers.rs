//! Sixteen numbers in registers, for each instruction set: what all tiles are made of.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256, __m256i, __m512, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm256_and_si256,
    _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_fmadd_ps, _mm256_load_si256,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_slli_epi32, _mm256_storeu_ps, _mm512_and_si512, _mm512_castsi512_ps,
    _mm512_cvtepu16_epi32, _mm512_fmadd_ps, _mm512_load_si512, _mm512_loadu_ps, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps,
};
use std::array;

use crate::pairs::{PairLine, number, terms};
use crate::tile::{Half, LANES};

/// Sixteen numbers of AVX-512.
#[cfg(target_arch = "x86_64")]
pub(crate) type Wide = __m512;
/// Sixteen numbers of AVX2.
#[cfg(target_arch = "x86_64")]
pub(crate) type Narrow = [__m256; 2];
/// Sixteen numbers of an array, whose loops the compiler vectorises.
pub(crate) type Portable = [f32; LANES];

/// Sixteen numbers in registers.
pub(crate) trait Register: Copy {
    /// # Safety
    /// The processor has the instructions.
    unsafe fn zero() -> Self;
    /// # Safety
    /// The processor has the instructions, and 16 numbers can be read.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// The processor has the instructions, and 16 numbers can be read.
    unsafe fn load_halves(from: *const Half) -> Self;
    /// Returns the first and the second terms of sixteen pairs.
    ///
    /// # Safety
    /// The processor has the instructions, and a line can be read.
    unsafe fn load_pairs(from: *const PairLine) -> [Self; 2];
    /// # Safety
    /// The processor has the instructions, and 16 numbers can be written.
    unsafe fn store(self, to: *mut f32);
    /// Returns `self + x * by`, rounded once if the processor has fused multiply-add.
    ///
    /// # Safety
    /// The processor has the instructions.
    unsafe fn plus(self, x: f32, by: Self) -> Self;
    /// Prefetches an address, which may be invalid.
    fn prefetch(address: *const u8);
}

/// Computes a tile: `let` binds the sums, which start from 0 or from the target, the block adds to them, and they are stored.
///
/// It is no function, because sums that go through one stay in memory, where every step would store them.
///
/// # Safety
/// A tile of this shape can be read and written, and the processor has the instructions.
macro_rules! with_sums {
    ($target:expr, |$sums:ident: [[$register:ty; $columns:ident]; $rows:ident]| $add:expr) => {{
        let (start, stride) = ($target.data.as_mut_ptr(), $target.stride);
        // SAFETY: guaranteed by the caller.
        let at = |r: usize, c: usize| unsafe { start.add(r * stride + c * LANES) };
        let mut $sums: [[$register; $columns]; $rows] = match $target.write {
            // SAFETY: guaranteed by the caller.
            Write::Replace => [[unsafe { <$register>::zero() }; $columns]; $rows],
            Write::Add => {
                // SAFETY: guaranteed by the caller.
                array::from_fn(|r| array::from_fn(|c| unsafe { <$register>::load(at(r, c)) }))
            }
        };
        $add;
        for (r, sums) in $sums.iter().enumerate() {
            for (c, sum) in sums.iter().enumerate() {
                // SAFETY: guaranteed by the caller.
                unsafe { sum.store(at(r, c)) };
            }
        }
    }};
}
pub(crate) use with_sums;

/// Calls a function for the shape of a tile: `function::<rows, vectors>(target, factors)`, or with a type before them.
macro_rules! of_shape {
    ($function:ident::<$of:ty>($target:expr, $factors:expr), $($vectors:literal: [$($rows:literal)*]),*) => {
        match ($factors.vectors, $factors.rows) {
            $($(($vectors, $rows) => $function::<$of, $rows, $vectors>($target, $factors),)*)*
            (vectors, rows) => panic!("there is no tile of {rows} rows and {vectors} vectors"),
        }
    };
    ($function:ident($target:expr, $factors:expr), $($vectors:literal: [$($rows:literal)*]),*) => {
        match ($factors.vectors, $factors.rows) {
            $($(($vectors, $rows) => $function::<$rows, $vectors>($target, $factors),)*)*
            (vectors, rows) => panic!("there is no tile of {rows} rows and {vectors} vectors"),
        }
    };
}
pub(crate) use of_shape;

#[cfg(target_arch = "x86_64")]
#[allow(clippy::inline_always, reason = "they are a few instructions")]
impl Register for Wide {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_halves(from: *const Half) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }

    #[inline(always)]
    unsafe fn load_pairs(from: *const PairLine) -> [Self; 2] {
        // SAFETY: guaranteed by the caller; a line is aligned.
        unsafe {
            let pairs = _mm512_load_si512(from.cast());
            let second = _mm512_and_si512(pairs, _mm512_set1_epi32(-0x1_0000));
            [_mm512_slli_epi32::<16>(pairs), second].map(|terms| _mm512_castsi512_ps(terms))
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn plus(self, x: f32, by: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm512_fmadd_ps(_mm512_set1_ps(x), by, self) }
    }

    #[inline(always)]
    fn prefetch(address: *const u8) {
        // SAFETY: a prefetch of an invalid address does nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(clippy::inline_always, reason = "they are a few instructions")]
impl Register for Narrow {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { [_mm256_setzero_ps(); 2] }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn load_halves(from: *const Half) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe {
            [from, from.add(8)].map(|from| {
                let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
            })
        }
    }

    #[inline(always)]
    unsafe fn load_pairs(from: *const PairLine) -> [Self; 2] {
        // SAFETY: guaranteed by the caller; a line is aligned, and so is its second half.
        unsafe {
            let halves: [_; 2] =
                array::from_fn(|half| _mm256_load_si256(from.cast::<__m256i>().add(half)));
            let mask = _mm256_set1_epi32(-0x1_0000);
            [
                halves.map(|pairs| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs))),
                halves.map(|pairs| _mm256_castsi256_ps(_mm256_and_si256(pairs, mask))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            _mm256_storeu_ps(to, self[0]);
            _mm256_storeu_ps(to.add(8), self[1]);
        }
    }

    #[inline(always)]
    unsafe fn plus(self, x: f32, by: Self) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let x = _mm256_set1_ps(x);
            [_mm256_fmadd_ps(x, by[0], self[0]), _mm256_fmadd_ps(x, by[1], self[1])]
        }
    }

    #[inline(always)]
    fn prefetch(address: *const u8) {
        // SAFETY: a prefetch of an invalid address does nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
}

#[allow(clippy::inline_always, reason = "they are the body of a loop")]
impl Register for Portable {
    #[inline(always)]
    unsafe fn zero() -> Self {
        [0.0; LANES]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { from.cast::<Self>().read() }
    }

    #[inline(always)]
    unsafe fn load_halves(from: *const Half) -> Self {
        // SAFETY: guaranteed by the caller.
        let halves = unsafe { from.cast::<[Half; LANES]>().read() };
        halves.map(|half| number(half.0))
    }

    #[inline(always)]
    unsafe fn load_pairs(from: *const PairLine) -> [Self; 2] {
        // SAFETY: guaranteed by the caller.
        let pairs = unsafe { *from }.0.map(terms);
        [0, 1].map(|term| pairs.map(|pair| pair[term]))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: guaranteed by the caller.
        unsafe { to.cast::<Self>().write(self) }
    }

    #[inline(always)]
    unsafe fn plus(mut self, x: f32, by: Self) -> Self {
        for (sum, by) in self.iter_mut().zip(by) {
            // Without the instruction, a fused operation is a function call.
            *sum = if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
                x.mul_add(by, *sum)
            } else {
                x * by + *sum
            };
        }
        self
    }

    #[inline(always)]
    fn prefetch(_address: *const u8) {}
}
