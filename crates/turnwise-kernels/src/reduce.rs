//! Reductions over a vocabulary, with the widest vectors of the processor.

use crate::{math, vectorized};

/// The block size of [`exponential_block_sums`], in numbers.
pub const BLOCK: usize = 64;

/// The number of parallel partial sums.
const LANES: usize = 16;

vectorized! {
    /// Returns the largest number, or minus infinity for an empty slice. NaN is skipped.
    ///
    /// ```
    /// assert_eq!(turnwise_kernels::reduce::maximum(&[1.0, 3.0, f32::NAN, 2.0]), 3.0);
    /// ```
    #[must_use]
    pub fn maximum(x: &[f32]) -> f32 {
        math::maximum(x)
    }

    /// Sums `exp((x - highest) * factor)` over each [`BLOCK`] of numbers. No number in `x` is above `highest`.
    ///
    /// ```
    /// use turnwise_kernels::reduce::exponential_block_sums;
    ///
    /// let mut sums = [0.0];
    /// exponential_block_sums(&[5.0, 5.0, f32::NEG_INFINITY], 5.0, 1.0, &mut sums);
    /// assert_eq!(sums, [2.0]);
    /// ```
    pub fn exponential_block_sums(x: &[f32], highest: f32, factor: f32, sums: &mut [f64]) {
        for (sum, block) in sums.iter_mut().zip(x.chunks(BLOCK)) {
            let mut lanes = [0.0_f32; LANES];
            let (whole, rest) = block.as_chunks::<LANES>();
            for x in whole {
                for i in 0..LANES {
                    lanes[i] += math::exp_flushed((x[i] - highest) * factor);
                }
            }
            for (lane, x) in lanes.iter_mut().zip(rest) {
                *lane += math::exp_flushed((x - highest) * factor);
            }
            *sum = lanes.iter().map(|lane| f64::from(*lane)).sum();
        }
    }
}
