//! An experiment: a task of two turns in which the first turn's action alone decides, learnt with two kinds of credit.
//!
//! A door is named, the agent pulls a lever, and then it must write a report, which is read by nobody and takes most of the
//! episode's tokens. The lever decides whether the door opens, and the environment rewards it in the turn that pulled it.
//!
//! Outcome-only GSPO gives the tokens of the report the same advantage as the lever. Their expected gradient is zero, since
//! no word of the report changes anything, but every one of them is as loud as the lever, and a network shares its weights
//! between the two: the lever's signal is one part in n of what the optimiser sees. With credit by turn the report earns
//! what comes after it, which is nothing, and is left (nearly) alone.
//!
//! Both arms of [`run`] have the same start (a short imitation of a player that pulls levers at random, so that form is known
//! and skill is not), tasks, seeds, objective settings and optimiser. They differ in credit and, with it, in objective:
//! `Gspo` with `OutcomeCredit`, `GspoToken` with credit by turn.

mod baseline;
mod experiment;
mod levers;
mod report;
mod vocabulary;

pub use baseline::TurnBaselineCredit;
pub use experiment::{Arm, ExperimentError, Run, Settings, run};
pub use levers::{LeverPuller, LeverTask, LeverTasks, Levers};
pub use report::{Comparison, compare, lines};
pub use vocabulary::Vocabulary;
