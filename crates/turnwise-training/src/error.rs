use turnwise_objective::AdvantageError;
use turnwise_rollout::RolloutError;

use crate::learning::MAX_SKIPPED_IN_ROW;
use crate::{BatchError, Books, CanaryError, LearnerError};

/// Why training cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Rollouts.
    #[error(transparent)]
    Rollout(#[from] RolloutError),
    /// The learner, or the objective inside it.
    #[error(transparent)]
    Learner(#[from] LearnerError),
    /// Credit.
    #[error("assign credit")]
    Credit(#[from] AdvantageError),
    /// A token without credit.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The engine does not serve the weights that were published.
    #[error(transparent)]
    Canary(#[from] CanaryError),
    /// The gradient was not finite several times in a row.
    #[error(
        "train: the gradient was not finite in {MAX_SKIPPED_IN_ROW} updates in a row, the last at step {step}{}",
        of_parameter(parameter.as_deref())
    )]
    NotFinite {
        /// The step.
        step: u64,
        /// The first parameter with such a gradient in the last of them, where the learner knows it.
        parameter: Option<String>,
    },
    /// Episodes got lost: a bug.
    #[error("account for every episode: {} of {} are nowhere", books.unaccounted(), books.dispatched)]
    Unaccounted {
        /// Where the others are.
        books: Box<Books>,
    },
}

fn of_parameter(parameter: Option<&str>) -> String {
    parameter.map_or_else(String::new, |name| format!(", first in that of {name}"))
}
