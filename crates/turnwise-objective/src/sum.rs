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
    fn what_is_not_finite_stays_visible() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut lanes: LaneSum = LaneSum::zero();
            lanes.add([0.0, bad, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
            lanes.add([1.0; LANES]);
            assert!(!lanes.total().is_finite(), "{bad}");
        }
    }
}
