use turnwise_objective::AdvantageError;
use turnwise_rollout::RolloutError;

use crate::learning::MAX_SKIPPED_IN_ROW;
use crate::{BatchError, Books, CanaryError, LearnerError};

/// An error that stops training.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Rollouts failed.
    #[error(transparent)]
    Rollout(#[from] RolloutError),
    /// The learner or the objective failed.
    #[error(transparent)]
    Learner(#[from] LearnerError),
    /// Credit assignment failed.
    #[error("cannot assign credit")]
    Credit(#[from] AdvantageError),
    /// A batch could not be laid out.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The engine does not serve the published weights.
    #[error(transparent)]
    Canary(#[from] CanaryError),
    /// The gradient was not finite several times in a row.
    #[error(
        "cannot train further: the gradient was not finite in {MAX_SKIPPED_IN_ROW} updates in a row, the last at step {step}{}",
        of_parameter(parameter.as_deref())
    )]
    NotFinite {
        /// The last step.
        step: u64,
        /// The first parameter with such a gradient in the last update, if the learner knows it.
        parameter: Option<String>,
    },
    /// Episodes got lost, which is a bug.
    #[error("cannot account for every episode: {} of {} are lost", books.unaccounted(), books.dispatched)]
    Unaccounted {
        /// The books of the run.
        books: Box<Books>,
    },
}

fn of_parameter(parameter: Option<&str>) -> String {
    parameter.map_or_else(String::new, |name| format!(", first in that of {name}"))
}
