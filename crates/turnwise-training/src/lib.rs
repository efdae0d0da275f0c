//! Training: credit, batches, the training loop, evaluation and run directories.
//!
#![doc = include_str!("../README.md")]
//!
//! [`Trainer::step`] is the loop. Its parts can be used alone: [`Credit`] turns rewards into advantages turn by turn,
//! [`Admission`] decides what trains, [`Batch`] lays trajectories out in rows, and a [`Learner`] computes
//! log-probabilities and takes their gradients.

mod admission;
mod batch;
mod books;
mod canary;
mod capacity;
mod checkpoint;
mod clip_range;
mod columns;
mod credit;
mod curriculum;
mod demonstration;
mod difference;
mod disk;
mod error;
mod evaluate;
mod evaluation_record;
mod interval;
mod json_lines;
mod lead;
mod learner;
mod learning;
mod manifest;
pub mod metric;
mod objective_speed;
mod parallel;
mod policy_gradient;
mod proximal;
mod report;
mod row;
mod run_directory;
mod run_files;
mod schedule;
mod scheduler;
mod trainer;

pub use admission::{
    Admission, Admitted, DropReason, Lengths, Overlong, StaleTokens, TruncatedEpisodes,
};
pub use batch::{
    Batch, BatchError, RatioScope, TrainToken, assign_credit, check_trajectories, fill_references,
};
pub use books::Books;
pub use canary::{Canary, CanaryError};
pub use capacity::{Occupancy, capacity};
pub use checkpoint::{Checkpoint, CheckpointError, Checkpoints, save_weights, verify_weights};
pub use clip_range::AutoClip;
pub use credit::{
    Conservation, Credit, CreditRecord, CreditStream, CreditStreams, GigpoCredit, OutcomeCredit,
    ReinforcePlusPlusCredit, ReturnCredit, TurnBaselineCredit, TurnCredit, TurnIndexBiasedCredit,
    assign_batch_credit, credit_records,
};
pub use curriculum::Curriculum;
pub use demonstration::{Demonstration, DemonstrationError, Fitting, demonstrate, imitate_step};
pub use difference::SuccessDifference;
pub use disk::{free_bytes, read_plain};
pub use error::TrainError;
pub use evaluate::{Evaluated, Evaluation, EvaluationSettings, evaluate};
pub use evaluation_record::{EpisodeScore, EvaluationRecord};
pub use interval::{SuccessRate, wilson};
pub use learner::{GradientFn, Learner, LearnerError, Update, Updated};
pub use objective_speed::{
    ObjectiveSpeed, ObjectiveSpeedError, ObjectiveSpeedSettings, measure_objective,
};
pub use policy_gradient::{
    BatchLoss, Mismatch, ObjectiveReport, SequenceError, accumulate, accumulate_in, batch_loss,
    micro_batches,
};
pub use proximal::{Behavior, Bound, Correction, Stretch, recompute};
pub use report::StepReport;
pub use row::{Row, Target};
pub use run_directory::{RunDirectory, RunDirectoryError, Summary};
pub use run_files::{Damage, EpisodeFile, RunFiles, RunState};
pub use schedule::{Decay, Schedule};
pub use scheduler::{DynamicSampling, RolloutMode};
pub use trainer::{Parts, Trainer, TrainerSettings, TrainerSnapshot};
