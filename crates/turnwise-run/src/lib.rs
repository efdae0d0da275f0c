//! The library behind the `turnwise` command: settings, a registry of environments, training runs.
//!
#![doc = include_str!("../README.md")]
//!
//! A program trains with a few calls: settings from [`load`], environments from a [`Registry`], and [`train`] with an
//! [`Observer`] that follows the run. The command adds arguments, signals and a terminal.

mod agent;
mod before_after;
pub mod chat;
pub mod config;
mod constraint;
pub mod doctor;
mod engine;
mod estimate;
mod evaluate;
mod failure;
#[cfg(test)]
mod fixture;
pub mod form;
mod learner;
mod memory;
mod observer;
mod opponent;
mod registry;
mod remote;
mod resume;
mod run;
mod session;
pub mod text;
mod threads;
mod train;
mod watch;
mod workers;

pub use before_after::BeforeAfter;
pub use config::{Config, Loaded, load};
pub use doctor::{Diagnosis, diagnose};
#[cfg(feature = "gguf")]
pub use engine::keep_products_together;
pub use evaluate::{Evaluating, evaluate};
pub use failure::{ExitCode, Failure};
pub use observer::{Observer, Plan, Unobserved};
pub use registry::{Registry, SuiteError, from_arguments};
pub use resume::resume;
pub use session::{load_model, locate_model, resolve_form};
pub use train::{train, try_settings};
pub use watch::{Watched, watch};
pub use workers::{WorkersChoice, work};
