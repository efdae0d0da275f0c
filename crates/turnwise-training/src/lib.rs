//! From finished groups to better weights: credit, batches, the training loop, evaluation and run directories.
//!
//! [`Trainer::step`] is the loop. What it is made of can be used alone: [`Credit`] turns rewards into advantages turn by
//! turn, [`Admission`] decides what trains, [`Batch`] lays trajectories out in rows, and a [`Learner`] is anything that
//! has log-probabilities and takes their gradients.

mod admission;
mod batch;
mod checkpoint;
mod credit;
mod demonstration;
mod evaluate;
mod interval;
mod learner;
pub mod metric;
mod policy_gradient;
mod proximal;
mod report;
mod row;
mod run_directory;
mod schedule;
mod trainer;

pub use admission::{Admission, Admitted, StaleTokens, TruncatedEpisodes};
pub use batch::{Batch, BatchError, RatioScope, TrainToken, assign_credit};
pub use checkpoint::{Checkpoint, CheckpointError, Checkpoints};
pub use credit::{
    Conservation, Credit, CreditStream, CreditStreams, GigpoCredit, OutcomeCredit,
    ReinforcePlusPlusCredit, ReturnCredit, TurnCredit, TurnIndexBiasedCredit, assign_batch_credit,
};
pub use demonstration::{Demonstration, DemonstrationError, demonstrate, imitate_step};
pub use evaluate::{Evaluated, Evaluation, EvaluationSettings, evaluate};
pub use interval::SuccessRate;
pub use learner::{GradientFn, Learner, LearnerError, Update, Updated};
pub use policy_gradient::{Mismatch, ObjectiveReport, accumulate};
pub use proximal::{Behavior, recompute};
pub use report::StepReport;
pub use row::{Row, Target};
pub use run_directory::{RunDirectory, RunDirectoryError, Summary};
pub use schedule::{Decay, Schedule};
pub use trainer::{Parts, TrainError, Trainer, TrainerSettings, TrainerSnapshot};
