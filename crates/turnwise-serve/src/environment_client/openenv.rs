//! Environments behind OpenEnv.

mod frames;
mod game;
mod options;
mod socket;

pub use options::{ActingBy, OpenEnvOptions, openenv_tasks};
