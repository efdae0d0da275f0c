//! Detection of numbers that are NaN or infinite, and of the weights that cause them.

use turnwise_kernels::math;
use turnwise_kernels::vectorized;

use crate::layout::Spec;

vectorized! {
    /// Returns whether every number is finite.
    pub(crate) fn all_finite(x: &[f32]) -> bool {
        // NaN and infinity times 0 are NaN.
        math::sum_of(x, |x| x * 0.0) == 0.0
    }
}

/// Returns the index of the first number that is not finite.
pub(crate) fn first_not_finite(x: &[f32]) -> Option<usize> {
    if all_finite(x) { None } else { x.iter().position(|x| !x.is_finite()) }
}

/// Says where a tensor holds a number that is not finite, as in "model.norm.weight is NaN at [3]".
pub(crate) fn describe(tensor: &str, shape: &[usize], index: usize, value: f32) -> String {
    let mut rest = index;
    let mut place: Vec<usize> = shape
        .iter()
        .rev()
        .map(|length| {
            let along = rest % length.max(&1);
            rest /= length.max(&1);
            along
        })
        .collect();
    place.reverse();
    format!("{tensor} is {value} at {place:?} and must be finite")
}

/// A search for the weight that makes results NaN or infinite.
#[derive(Debug, Default)]
pub(crate) struct Culprit {
    /// The first weight that is not finite.
    found: Option<String>,
    /// The largest absolute value, and its tensor.
    largest: (f32, String),
}

impl Culprit {
    /// Examines a parameter.
    pub(crate) fn look(&mut self, spec: &Spec, values: &[f32]) {
        if self.found.is_some() {
            return;
        }
        let size = (spec.len() / spec.n_tensors()).max(1);
        for (name, values) in spec.tensor_names().zip(values.chunks(size)) {
            if let Some(index) = first_not_finite(values) {
                self.found = Some(describe(&name, spec.tensor_shape(), index, values[index]));
                return;
            }
            let largest = values.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            if largest > self.largest.0 {
                self.largest = (largest, name);
            }
        }
    }

    /// Says which weight is not finite, or that finite weights overflow.
    pub(crate) fn reason(self) -> String {
        let (largest, name) = self.largest;
        self.found.unwrap_or_else(|| {
            format!(
                "every weight is finite, but results are not; the largest weight is {largest:e}, in {name}"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_not_finite_is_found_wherever_it_is() {
        for length in [1, 15, 16, 17, 100] {
            let mut x = vec![f32::MAX; length];
            assert_eq!(first_not_finite(&x), None);
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for place in [0, length / 2, length - 1] {
                    let before = std::mem::replace(&mut x[place], value);
                    assert_eq!(first_not_finite(&x), Some(place));
                    x[place] = before;
                }
            }
        }
        assert_eq!(first_not_finite(&[]), None);
    }

    #[test]
    fn a_place_is_given_along_every_dimension() {
        assert_eq!(
            describe("w", &[2, 3, 4], 17, f32::NAN),
            "w is NaN at [1, 1, 1] and must be finite"
        );
    }
}
