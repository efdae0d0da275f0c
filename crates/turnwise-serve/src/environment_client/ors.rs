//! Environments behind the Open Reward Standard.

mod game;
mod options;
mod session;

pub use options::{OrsOptions, ors_tasks};
