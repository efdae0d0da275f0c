//! SIMD dispatch: functions are compiled for several instruction sets, and a call runs the best version.
//!
//! The build's own target is any x86-64, whose vectors hold four numbers. [`vectorized!`](crate::vectorized) compiles a
//! function three times: for AVX-512, for AVX2 and for the target of the build. All versions compute the same numbers,
//! because Rust neither reorders nor fuses operations.

/// An instruction set, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Vectors of 16 numbers, with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// Vectors of 8 numbers, with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// The target of the build.
    Portable,
}

/// Returns the best instruction set of this processor. The first call asks the processor, later ones load a number.
///
/// ```
/// use turnwise_kernels::simd::level;
///
/// assert_eq!(level(), level());
/// ```
#[inline]
#[must_use]
pub fn level() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        let has_fma = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let has_avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if has_fma && has_avx512 {
            return Level::Avx512;
        }
        if has_fma {
            return Level::Avx2;
        }
    }
    Level::Portable
}

/// Compiles functions for every [`Level`](crate::simd::Level); a call runs the best.
///
/// Functions that they call must be `#[inline(always)]`, or those stay at the width of the build. A call costs a branch: put
/// whole loops inside, not their bodies. Arguments are plain names with types; there are no generics.
///
/// ```
/// use turnwise_kernels::{math, vectorized};
///
/// vectorized! {
///     /// Normalises each row.
///     fn softmax_rows(rows: &mut [f32], width: usize) {
///         rows.chunks_exact_mut(width).for_each(math::softmax);
///     }
/// }
///
/// let mut rows = [0.0, 0.0, 1.0, 1.0];
/// softmax_rows(&mut rows, 2);
/// assert_eq!(rows, [0.5; 4]);
/// ```
#[macro_export]
macro_rules! vectorized {
    ($(
        $(#[$attribute:meta])*
        $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block
    )*) => {$(
        $(#[$attribute])*
        $visibility fn $name($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            #[allow(clippy::inline_always, reason = "it must take on the features of its caller")]
            #[allow(clippy::too_many_arguments, reason = "checked where the function is declared")]
            fn portable($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            #[allow(clippy::too_many_arguments, reason = "checked where the function is declared")]
            fn avx512($($argument: $type),*) $(-> $result)? {
                portable($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments, reason = "checked where the function is declared")]
            fn avx2($($argument: $type),*) $(-> $result)? {
                portable($($argument),*)
            }

            match $crate::simd::level() {
                // SAFETY: `level` found every feature that the function is compiled for.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Avx512 => unsafe { avx512($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Avx2 => unsafe { avx2($($argument),*) },
                $crate::simd::Level::Portable => portable($($argument),*),
            }
        }
    )*};
}

#[cfg(test)]
mod tests {
    use crate::math;

    vectorized! {
        /// A softmax, and a sum.
        fn both(x: &mut [f32], other: &[f32]) -> f32 {
            math::softmax(x);
            math::dot(x, other)
        }
    }

    #[test]
    fn a_function_is_the_same_at_every_width() {
        let mut x: Vec<f32> = (0_u16..77).map(|i| f32::from(i * 37 % 19) * 0.3).collect();
        let mut same = x.clone();
        let other: Vec<f32> = x.iter().map(|x| 1.0 - x * 0.1).collect();
        let sum = both(&mut x, &other);
        math::softmax(&mut same);
        assert_eq!((math::dot(&same, &other), same), (sum, x));
    }
}
