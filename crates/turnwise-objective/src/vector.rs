//! Eight numbers side by side, in the widest registers that the processor has.

use crate::sum::LANES;

/// Eight `f64`. Every implementation has the same arithmetic, rounded after each operation, so that a result has the same
/// bits on every processor. Methods are inlined wherever they are called: a call would cost more than they do.
pub(crate) trait Vector: Copy {
    fn splat(value: f64) -> Self;
    fn load(values: &[f64; LANES]) -> Self;
    fn store(self, to: &mut [f64; LANES]);
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    /// `positive` where this is above 0, `other` where it is not.
    fn select_positive(self, positive: Self, other: Self) -> Self;
    /// How many are below this one's.
    fn count_above(self, other: Self) -> u32;
    /// Whether all are at most `bound` in size; NaN is not.
    fn all_within(self, bound: f64) -> bool;

    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }

    /// The eight as an array.
    #[inline(always)]
    fn stored(self) -> [f64; LANES] {
        let mut values = [0.0; LANES];
        self.store(&mut values);
        values
    }
}

/// A loop over tokens.
pub(crate) trait Pass {
    /// What the loop leaves behind.
    type Output;

    /// Runs it. To be `#[inline(always)]`, like all that it calls for each token: what is not inlined is compiled for the
    /// narrowest processor.
    fn run<V: Vector>(self) -> Self::Output;
}

/// Runs a pass in the widest registers at hand.
#[inline]
#[allow(unsafe_code)]
pub(crate) fn run_widest<P: Pass>(pass: P) -> P::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("popcnt")
        {
            // SAFETY: the processor has all that the function is compiled for.
            return unsafe { x86::run_in_512_bits(pass) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt") {
            // SAFETY: the processor has all that the function is compiled for.
            return unsafe { x86::run_in_256_bits(pass) };
        }
    }
    pass.run::<[f64; LANES]>()
}

/// The value of each lane. Unlike the array's own `map` it is inlined everywhere.
#[inline(always)]
pub(crate) fn lanes<T: Copy + Default>(value: impl Fn(usize) -> T) -> [T; LANES] {
    let mut values = [T::default(); LANES];
    for (lane, slot) in values.iter_mut().enumerate() {
        *slot = value(lane);
    }
    values
}

/// On any processor.
impl Vector for [f64; LANES] {
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

/// Registers of x86-64. A value of one of these types exists only where the processor was found to have them.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, Pass, Vector};

    #[target_feature(enable = "avx512f,avx512dq,avx512vl,popcnt")]
    pub(super) fn run_in_512_bits<P: Pass>(pass: P) -> P::Output {
        pass.run::<Wide>()
    }

    #[target_feature(enable = "avx2,popcnt")]
    pub(super) fn run_in_256_bits<P: Pass>(pass: P) -> P::Output {
        pass.run::<Pair>()
    }

    /// One register of 512 bits.
    #[derive(Clone, Copy)]
    struct Wide(__m512d);

    // SAFETY of all that follows: only `run_in_512_bits` uses the type, and it runs where the processor has AVX-512; what is
    // loaded and stored are arrays of eight, at any alignment.
    impl Vector for Wide {
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

    /// Two registers of 256 bits.
    #[derive(Clone, Copy)]
    struct Pair(__m256d, __m256d);

    impl Pair {
        #[inline(always)]
        fn each(self, other: Self, of: impl Fn(__m256d, __m256d) -> __m256d) -> Self {
            Self(of(self.0, other.0), of(self.1, other.1))
        }

        /// One bit for each lane of a comparison.
        #[inline(always)]
        fn mask(self) -> u32 {
            unsafe {
                (_mm256_movemask_pd(self.0) | (_mm256_movemask_pd(self.1) << 4)).cast_unsigned()
            }
        }
    }

    // SAFETY of all that follows: only `run_in_256_bits` uses the type, and it runs where the processor has AVX2; what is
    // loaded and stored are the halves of arrays of eight, at any alignment.
    impl Vector for Pair {
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
