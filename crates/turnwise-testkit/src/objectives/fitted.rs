use std::fmt::Debug;
use std::ops::Deref;

use proptest::test_runner::TestCaseError;
use turnwise_objective::{
    Advantages, Denominator, Objective, ObjectiveError, Sequence, SequenceLoss,
};

use super::tokens::mean;

/// An objective that accepts any sequence, because it adds the columns that the inner objective needs and the sequence
/// lacks.
///
/// The mean of finite advantages replaces all of them if the inner objective rejects advantages that differ; two turns
/// of equal length stand for unknown turns, and the behaviour policy for an unknown reference. All checks evaluate an
/// objective in this way.
#[derive(Clone, Copy, Debug)]
pub struct Fitted<P>(pub P);

impl<P> Objective for Fitted<P>
where
    P: Deref<Target: Objective> + Debug + Send + Sync,
{
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn denominator(&self) -> Denominator {
        self.0.denominator()
    }

    fn token_weight(&self, n_tokens: usize) -> f64 {
        self.0.token_weight(n_tokens)
    }

    fn evaluate(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError> {
        self.evaluate_scaled(sequence, gradient, 1.0)
    }

    fn evaluate_scaled(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
        scale: f64,
    ) -> Result<SequenceLoss, ObjectiveError> {
        let n = sequence.len();
        let advantages = match sequence.advantages() {
            // A number that is not finite keeps its place, so that the error can name it.
            Advantages::PerToken(all)
                if self.0.needs_uniform_advantages() && all.iter().all(|a| a.is_finite()) =>
            {
                Advantages::Uniform(if n == 0 { 0.0 } else { mean(all) })
            }
            other => other,
        };
        let halves = [n / 2, n - n / 2];
        let mut fitted = sequence.with_advantages(advantages)?;
        if fitted.turns().is_none() {
            fitted = fitted.with_turns(&halves)?;
        }
        if fitted.reference_logprobs().is_none() {
            fitted = fitted.with_reference(sequence.behavior_logprobs())?;
        }
        self.0.evaluate_scaled(&fitted, gradient, scale)
    }
}

/// Evaluates one sequence with an objective, [fitted](Fitted). The gradient starts as NaN, so that an entry that is not
/// written shows.
///
/// # Errors
///
/// Fails if the objective rejects the sequence.
pub fn evaluate(
    objective: &dyn Objective,
    sequence: &Sequence<'_>,
) -> Result<(SequenceLoss, Vec<f64>), TestCaseError> {
    let mut gradient = vec![f64::NAN; sequence.len()];
    match Fitted(objective).evaluate(sequence, &mut gradient) {
        Ok(evaluated) => Ok((evaluated, gradient)),
        Err(error) => {
            let why = format!("{objective:?} refuses {sequence:?}: {error}");
            Err(TestCaseError::fail(why))
        }
    }
}
