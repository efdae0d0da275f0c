//! From finished groups to better weights: credit, batches, the training loop, checkpoints and run directories.

mod learner;
mod row;

pub use learner::{GradientFn, Learner, LearnerError, Update, Updated};
pub use row::{Row, Target};
