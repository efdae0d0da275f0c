//! Finds the weight that made a result NaN or infinite.

use super::Decoder;
use crate::ModelError;
use crate::finite::{Culprit, all_finite};

impl Decoder {
    /// Returns the numbers that this model computed if all of them are finite.
    ///
    /// # Errors
    /// [`ModelError::NotFinite`] with the name of the tensor that caused it.
    pub(crate) fn finite(&self, what: &str, numbers: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        if all_finite(&numbers) {
            return Ok(numbers);
        }
        let action = format!("compute {what}");
        Err(ModelError::NotFinite { action, reason: self.culprit()?.reason() })
    }

    /// Searches all parameters.
    pub(crate) fn culprit(&self) -> Result<Culprit, ModelError> {
        let mut culprit = Culprit::default();
        for parameter in self.parameters() {
            culprit.look(&parameter.spec, &self.numbers(parameter)?);
        }
        Ok(culprit)
    }
}
