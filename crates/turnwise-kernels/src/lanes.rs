//! Vectors of eight `f64`, in the widest registers of the processor.
//!
//! A loop is written once over [`F64x8`] and run by [`run_widest`].

#![allow(
    clippy::inline_always,
    reason = "what is not inlined is compiled for the narrowest processor"
)]

/// Numbers in a [`F64x8`].
pub const LANES: usize = 8;

/// The prefetch distance of a pass, in numbers: computing this many takes about as long as a memory access. They go to
/// the second-level cache, because the first has no room for them beside the columns of the sequence, which passes read
/// again.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 512;

/// A vector of eight `f64`. Every implementation has the same arithmetic, rounded after each operation, so that a result has
/// the same bits on every processor. Methods are inlined wherever they are called: a call would cost more than they do.
pub trait F64x8: Copy {
    /// Returns a vector of equal numbers.
    #[must_use]
    fn splat(value: f64) -> Self;
    /// Reads a vector.
    #[must_use]
    fn load(values: &[f64; LANES]) -> Self;
    /// Writes the vector.
    fn store(self, to: &mut [f64; LANES]);
    /// Adds lane by lane.
    #[must_use]
    fn plus(self, other: Self) -> Self;
    /// Subtracts lane by lane.
    #[must_use]
    fn minus(self, other: Self) -> Self;
    /// Multiplies lane by lane.
    #[must_use]
    fn times(self, other: Self) -> Self;
    /// Selects `positive` where this is above 0, `other` where it is not.
    #[must_use]
    fn select_positive(self, positive: Self, other: Self) -> Self;
    /// Counts the lanes in which this is above `other`.
    fn count_above(self, other: Self) -> u32;
    /// Returns whether the absolute value of every lane is at most `bound`; that of NaN is not.
    fn all_within(self, bound: f64) -> bool;

    /// Prefetches the numbers that a loop over a slice will soon read or write. The address may lie outside the slice,
    /// where the next sequence often begins.
    #[inline(always)]
    fn ask_ahead(_values: &[f64; LANES]) {}

    /// Returns a vector of zeros.
    #[inline(always)]
    #[must_use]
    fn zero() -> Self {
        Self::splat(0.0)
    }

    /// Returns the lanes as an array.
    #[inline(always)]
    fn stored(self) -> [f64; LANES] {
        let mut values = [0.0; LANES];
        self.store(&mut values);
        values
    }
}

/// A loop that is compiled for each width of vectors.
///
/// ```
/// use turnwise_kernels::lanes::{F64x8, LANES, Vectorized, run_widest};
///
/// /// Adds up blocks of eight.
/// struct Sum<'a>(&'a [[f64; LANES]]);
///
/// impl Vectorized for Sum<'_> {
///     type Output = [f64; LANES];
///
///     #[inline(always)]
///     fn run<V: F64x8>(self) -> [f64; LANES] {
///         self.0.iter().fold(V::zero(), |sum, block| sum.plus(V::load(block))).stored()
///     }
/// }
///
/// assert_eq!(run_widest(Sum(&[[1.0; LANES], [2.0; LANES]])), [3.0; LANES]);
/// ```
pub trait Vectorized {
    /// The result of the loop.
    type Output;

    /// Runs the loop. It must be `#[inline(always)]`, like every function that it calls in the loop: a function that is
    /// not inlined is compiled for the narrowest processor.
    fn run<V: F64x8>(self) -> Self::Output;
}

/// Runs a loop in the widest registers of the processor.
#[inline]
pub fn run_widest<P: Vectorized>(pass: P) -> P::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if x86::has_512_bits() {
            return x86::in_512_bits(pass);
        }
        if x86::has_256_bits() {
            return x86::in_256_bits(pass);
        }
    }
    pass.run::<[f64; LANES]>()
}

/// Returns the value of each lane. Unlike the array's own `map` it is always inlined.
#[inline(always)]
pub fn lanes<T: Copy + Default>(value: impl Fn(usize) -> T) -> [T; LANES] {
    let mut values = [T::default(); LANES];
    for (lane, slot) in values.iter_mut().enumerate() {
        *slot = value(lane);
    }
    values
}

/// The portable vector.
impl F64x8 for [f64; LANES] {
    #[inline(always)]
    fn splat(value: f64) -> Self {
        [value; LANES]
    }

    #[inline(always)]
    fn load(values: &[f64; LANES]) -> Self {
        *values
    }

    #[inline(always)]
    fn store(self, to: &mut [f64; LANES]) {
        *to = self;
    }

    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        lanes(|lane| self[lane] + other[lane])
    }

    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        lanes(|lane| self[lane] - other[lane])
    }

    #[inline(always)]
    fn times(self, other: Self) -> Self {
        lanes(|lane| self[lane] * other[lane])
    }

    #[inline(always)]
    fn select_positive(self, positive: Self, other: Self) -> Self {
        lanes(|lane| if self[lane] > 0.0 { positive[lane] } else { other[lane] })
    }

    #[inline(always)]
    fn count_above(self, other: Self) -> u32 {
        let mut n = 0;
        for lane in 0..LANES {
            n += u32::from(self[lane] > other[lane]);
        }
        n
    }

    #[inline(always)]
    fn all_within(self, bound: f64) -> bool {
        let mut all = true;
        for value in self {
            all &= value.abs() <= bound;
        }
        all
    }
}

/// Registers of x86-64. A value of one of these types exists only if the processor supports them.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "one comment for each implementation says it")]
mod x86 {
    use std::arch::x86_64::{
        __m256d, __m512d, _CMP_GT_OQ, _CMP_LE_OQ, _MM_HINT_T1, _mm_prefetch, _mm256_add_pd,
        _mm256_andnot_pd, _mm256_blendv_pd, _mm256_cmp_pd, _mm256_loadu_pd, _mm256_movemask_pd,
        _mm256_mul_pd, _mm256_set1_pd, _mm256_storeu_pd, _mm256_sub_pd, _mm512_abs_pd,
        _mm512_add_pd, _mm512_cmp_pd_mask, _mm512_loadu_pd, _mm512_mask_blend_pd, _mm512_mul_pd,
        _mm512_set1_pd, _mm512_setzero_pd, _mm512_storeu_pd, _mm512_sub_pd,
    };

    use super::{AHEAD, F64x8, LANES, Vectorized};

    pub(super) fn has_512_bits() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("popcnt")
    }

    pub(super) fn has_256_bits() -> bool {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt")
    }

    /// Runs a pass on a processor for which [`has_512_bits`] is true.
    pub(super) fn in_512_bits<P: Vectorized>(pass: P) -> P::Output {
        #[target_feature(enable = "avx512f,avx512dq,avx512vl,popcnt")]
        fn compiled<P: Vectorized>(pass: P) -> P::Output {
            pass.run::<Wide>()
        }
        assert!(has_512_bits(), "the processor must have AVX-512");
        // SAFETY: the assertion ensures every feature that the function is compiled for.
        unsafe { compiled(pass) }
    }

    /// Runs a pass on a processor for which [`has_256_bits`] is true.
    pub(super) fn in_256_bits<P: Vectorized>(pass: P) -> P::Output {
        #[target_feature(enable = "avx2,popcnt")]
        fn compiled<P: Vectorized>(pass: P) -> P::Output {
            pass.run::<Pair>()
        }
        assert!(has_256_bits(), "the processor must have AVX2");
        // SAFETY: the assertion ensures every feature that the function is compiled for.
        unsafe { compiled(pass) }
    }

    /// A 512-bit register.
    #[derive(Clone, Copy)]
    struct Wide(__m512d);

    // SAFETY of the whole implementation: only `in_512_bits` uses the type, on processors with AVX-512; loads and
    // stores are arrays of eight numbers, at any alignment.
    impl F64x8 for Wide {
        #[inline(always)]
        fn ask_ahead(values: &[f64; LANES]) {
            // A prefetch reads nothing, and an invalid address is ignored.
            let ahead = values.as_ptr().wrapping_add(AHEAD);
            unsafe { _mm_prefetch::<_MM_HINT_T1>(ahead.cast()) }
        }

        #[inline(always)]
        fn splat(value: f64) -> Self {
            Self(unsafe { _mm512_set1_pd(value) })
        }

        #[inline(always)]
        fn load(values: &[f64; LANES]) -> Self {
            Self(unsafe { _mm512_loadu_pd(values.as_ptr()) })
        }

        #[inline(always)]
        fn store(self, to: &mut [f64; LANES]) {
            unsafe { _mm512_storeu_pd(to.as_mut_ptr(), self.0) }
        }

        #[inline(always)]
        fn plus(self, other: Self) -> Self {
            Self(unsafe { _mm512_add_pd(self.0, other.0) })
        }

        #[inline(always)]
        fn minus(self, other: Self) -> Self {
            Self(unsafe { _mm512_sub_pd(self.0, other.0) })
        }

        #[inline(always)]
        fn times(self, other: Self) -> Self {
            Self(unsafe { _mm512_mul_pd(self.0, other.0) })
        }

        #[inline(always)]
        fn select_positive(self, positive: Self, other: Self) -> Self {
            unsafe {
                let mask = _mm512_cmp_pd_mask::<_CMP_GT_OQ>(self.0, _mm512_setzero_pd());
                Self(_mm512_mask_blend_pd(mask, other.0, positive.0))
            }
        }

        #[inline(always)]
        fn count_above(self, other: Self) -> u32 {
            unsafe { _mm512_cmp_pd_mask::<_CMP_GT_OQ>(self.0, other.0) }.count_ones()
        }

        #[inline(always)]
        fn all_within(self, bound: f64) -> bool {
            unsafe {
                let size = _mm512_abs_pd(self.0);
                _mm512_cmp_pd_mask::<_CMP_LE_OQ>(size, _mm512_set1_pd(bound)) == u8::MAX
            }
        }
    }

    /// Two 256-bit registers.
    #[derive(Clone, Copy)]
    struct Pair(__m256d, __m256d);

    impl Pair {
        #[inline(always)]
        fn each(self, other: Self, of: impl Fn(__m256d, __m256d) -> __m256d) -> Self {
            Self(of(self.0, other.0), of(self.1, other.1))
        }

        /// Returns one bit for each lane of a comparison.
        #[inline(always)]
        fn mask(self) -> u32 {
            unsafe {
                (_mm256_movemask_pd(self.0) | (_mm256_movemask_pd(self.1) << 4)).cast_unsigned()
            }
        }
    }

    // SAFETY of the whole implementation: only `in_256_bits` uses the type, on processors with AVX2; loads and stores
    // are halves of arrays of eight numbers, at any alignment.
    impl F64x8 for Pair {
        #[inline(always)]
        fn ask_ahead(values: &[f64; LANES]) {
            // A prefetch reads nothing, and an invalid address is ignored.
            let ahead = values.as_ptr().wrapping_add(AHEAD);
            unsafe { _mm_prefetch::<_MM_HINT_T1>(ahead.cast()) }
        }

        #[inline(always)]
        fn splat(value: f64) -> Self {
            unsafe { Self(_mm256_set1_pd(value), _mm256_set1_pd(value)) }
        }

        #[inline(always)]
        fn load(values: &[f64; LANES]) -> Self {
            unsafe { Self(_mm256_loadu_pd(values.as_ptr()), _mm256_loadu_pd(values[4..].as_ptr())) }
        }

        #[inline(always)]
        fn store(self, to: &mut [f64; LANES]) {
            unsafe {
                _mm256_storeu_pd(to.as_mut_ptr(), self.0);
                _mm256_storeu_pd(to[4..].as_mut_ptr(), self.1);
            }
        }

        #[inline(always)]
        fn plus(self, other: Self) -> Self {
            self.each(other, |a, b| unsafe { _mm256_add_pd(a, b) })
        }

        #[inline(always)]
        fn minus(self, other: Self) -> Self {
            self.each(other, |a, b| unsafe { _mm256_sub_pd(a, b) })
        }

        #[inline(always)]
        fn times(self, other: Self) -> Self {
            self.each(other, |a, b| unsafe { _mm256_mul_pd(a, b) })
        }

        #[inline(always)]
        fn select_positive(self, positive: Self, other: Self) -> Self {
            let above =
                self.each(Self::zero(), |a, b| unsafe { _mm256_cmp_pd::<_CMP_GT_OQ>(a, b) });
            unsafe {
                Self(
                    _mm256_blendv_pd(other.0, positive.0, above.0),
                    _mm256_blendv_pd(other.1, positive.1, above.1),
                )
            }
        }

        #[inline(always)]
        fn count_above(self, other: Self) -> u32 {
            let above = self.each(other, |a, b| unsafe { _mm256_cmp_pd::<_CMP_GT_OQ>(a, b) });
            above.mask().count_ones()
        }

        #[inline(always)]
        fn all_within(self, bound: f64) -> bool {
            let sizes =
                self.each(Self::splat(-0.0), |a, sign| unsafe { _mm256_andnot_pd(sign, a) });
            let within =
                sizes.each(Self::splat(bound), |a, b| unsafe { _mm256_cmp_pd::<_CMP_LE_OQ>(a, b) });
            within.mask() == 0xff
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation, over a broad set of numbers.
    #[derive(Clone, Copy)]
    struct All<'a>(&'a [[f64; LANES]]);

    impl Vectorized for All<'_> {
        type Output = (Vec<[u64; LANES]>, [u64; LANES], Vec<(u32, bool)>);

        #[inline(always)]
        fn run<V: F64x8>(self) -> Self::Output {
            let (mut values, mut decisions, mut sum) = (Vec::new(), Vec::new(), V::zero());
            for pair in self.0.windows(2) {
                V::ask_ahead(&pair[0]);
                let (a, b) = (V::load(&pair[0]), V::load(&pair[1]));
                let product = a.times(b).plus(a).minus(V::splat(0.1));
                sum = sum.plus(product);
                values.push(a.select_positive(product, b).stored().map(f64::to_bits));
                decisions.push((a.count_above(b), a.all_within(1.0)));
            }
            (values, sum.stored().map(f64::to_bits), decisions)
        }
    }

    #[test]
    fn every_processor_has_the_same_bits() {
        let mut state = 1_u64;
        let mut number = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let uniform = (state >> 11) as f64 / (1_u64 << 53) as f64 - 0.5;
            uniform * [1.0, 3.0, 0.0, 1e-9, 1e9][(state >> 7) as usize % 5]
        };
        let mut numbers: Vec<[f64; LANES]> = (0..100).map(|_| lanes_of(&mut number)).collect();
        let plain = All(&numbers).run::<[f64; LANES]>();
        assert_eq!(run_widest(All(&numbers)), plain);
        #[cfg(target_arch = "x86_64")]
        if x86::has_256_bits() {
            assert_eq!(x86::in_256_bits(All(&numbers)), plain);
        }
        // NaN is neither above nor below any number, and not within a bound.
        numbers[50] = [f64::NAN; LANES];
        let (_, _, decisions) = run_widest(All(&numbers));
        assert_eq!(decisions[50], (0, false));
        assert_eq!(decisions, All(&numbers).run::<[f64; LANES]>().2);
    }

    fn lanes_of(number: &mut impl FnMut() -> f64) -> [f64; LANES] {
        std::array::from_fn(|_| number())
    }
}
