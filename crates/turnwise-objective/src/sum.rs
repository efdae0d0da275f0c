//! Compensated sums in eight lanes.

use turnwise_kernels::lanes::{F64x8, LANES};

/// Eight running sums and the rounding error each has made so far.
///
/// Every addition is Knuth's two-sum: six operations, no branch, an exact error. A sum over 10⁶
/// tokens is therefore off by about one rounding, and a clip decision does not depend on the order
/// of the tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneSum<V = [f64; LANES]> {
    sum: V,
    error: V,
}

impl<V: F64x8> LaneSum<V> {
    #[inline(always)]
    pub(crate) fn zero() -> Self {
        Self { sum: V::zero(), error: V::zero() }
    }

    #[inline(always)]
    pub(crate) fn add(&mut self, values: V) {
        let sum = self.sum.plus(values);
        let values_in_sum = sum.minus(self.sum);
        let before_in_sum = sum.minus(values_in_sum);
        let error = self.sum.minus(before_in_sum).plus(values.minus(values_in_sum));
        self.sum = sum;
        self.error = self.error.plus(error);
    }

    /// Returns the sum of all added numbers; not finite if any of them is not.
    #[inline(always)]
    pub(crate) fn total(&self) -> f64 {
        total(&self.sum.stored(), &self.error.stored())
    }
}

/// The largest size of a number in a [`SmallSum`].
pub(crate) const SMALL: f64 = 1.0 / 32.0;

/// Eight running sums of numbers of at most [`SMALL`] each, compensated in four operations instead
/// of seven.
///
/// The sum starts at 8 and stays between 4 and 12: it is larger than any number that is added, so
/// that Dekker's fast two-sum gives the exact error of an addition. This error is at most 2⁻⁵⁰, and
/// adding it to the errors before it is off by at most 2⁻⁹⁶.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SmallSum<V> {
    /// 8 plus the sum.
    shifted: V,
    error: V,
}

impl<V: F64x8> SmallSum<V> {
    /// The most vectors that the sum has room for.
    pub(crate) const CAPACITY: usize = 128;

    const SHIFT: f64 = 8.0;

    #[inline(always)]
    pub(crate) fn zero() -> Self {
        Self { shifted: V::splat(Self::SHIFT), error: V::zero() }
    }

    #[inline(always)]
    pub(crate) fn add(&mut self, values: V) {
        let shifted = self.shifted.plus(values);
        let values_in_sum = shifted.minus(self.shifted);
        self.shifted = shifted;
        self.error = self.error.plus(values.minus(values_in_sum));
    }

    /// Adds this sum to another.
    #[inline(always)]
    pub(crate) fn add_to(&self, sum: &mut LaneSum<V>) {
        sum.add(self.shifted.minus(V::splat(Self::SHIFT)));
        sum.add(self.error);
    }
}

fn total(sums: &[f64; LANES], errors: &[f64; LANES]) -> f64 {
    let mut total = Sum::default();
    for &value in sums.iter().chain(errors) {
        total.add(value);
    }
    total.total()
}

/// A compensated sum, for the few numbers of a group or of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Sum {
    sum: f64,
    error: f64,
}

impl Sum {
    pub(crate) fn add(&mut self, value: f64) {
        let (sum, error) = two_sum(self.sum, value);
        self.sum = sum;
        self.error += error;
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.add(other.sum);
        self.error += other.error;
    }

    pub(crate) fn total(self) -> f64 {
        self.sum + self.error
    }
}

/// Returns the compensated sum of `values`.
pub(crate) fn sum(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut total = Sum::default();
    values.into_iter().for_each(|value| total.add(value));
    total.total()
}

/// Returns a + b as the rounded sum and its rounding error.
#[inline(always)]
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let b_in_sum = sum - a;
    let a_in_sum = sum - b_in_sum;
    (sum, (a - a_in_sum) + (b - b_in_sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancellation_leaves_the_exact_remainder() {
        assert_eq!(sum([1.0, 1e100, 1.0, -1e100]), 2.0);
        let mut lanes: LaneSum = LaneSum::zero();
        lanes.add([1e100, 1.0, -1e100, 1.0, 0.0, 0.0, 0.0, 1e-3]);
        assert_eq!(lanes.total(), 2.001);
    }

    #[test]
    fn a_full_sum_of_small_numbers_is_exact() {
        // Multiples of 2⁻⁷⁰ with 53 bits, whose integer sum is exact.
        let mut state = 1_u64;
        let mut step = |sign: i64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let size = (state >> 11).cast_signed() << (state as u32 % 13);
            size * if sign == 0 { 1 - ((state >> 63).cast_signed() << 1) } else { sign }
        };
        for sign in [-1, 0, 1] {
            let (mut small, mut exact) = (SmallSum::<[f64; LANES]>::zero(), 0_i128);
            for _ in 0..SmallSum::<[f64; LANES]>::CAPACITY {
                let steps: [i64; LANES] = std::array::from_fn(|_| step(sign));
                exact += steps.iter().map(|&step| i128::from(step)).sum::<i128>();
                let values = steps.map(|step| step as f64 * 2f64.powi(-70));
                assert!(values.all_within(SMALL));
                small.add(values);
            }
            let mut sum = LaneSum::zero();
            small.add_to(&mut sum);
            assert_eq!(sum.total(), exact as f64 * 2f64.powi(-70));
        }
    }

    #[test]
    fn small_numbers_at_the_bound_leave_room() {
        for value in [SMALL, -SMALL] {
            let mut small = SmallSum::zero();
            for _ in 0..SmallSum::<[f64; LANES]>::CAPACITY {
                small.add([value; LANES]);
                assert!((4.0..=12.0).contains(&small.shifted[0]));
            }
            let mut sum = LaneSum::zero();
            small.add_to(&mut sum);
            assert_eq!(sum.total(), 1024.0 * value);
        }
    }

    #[test]
    fn what_is_not_finite_stays_visible() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut lanes: LaneSum = LaneSum::zero();
            lanes.add([0.0, bad, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
            lanes.add([1.0; LANES]);
            assert!(!lanes.total().is_finite(), "{bad}");
        }
    }
}
