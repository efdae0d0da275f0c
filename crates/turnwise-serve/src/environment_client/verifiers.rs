//! Environments behind a server of verifiers, which plays whole episodes and asks the model for each turn.

mod client;
mod delta;
mod game;
mod options;
mod run;

pub use client::VerifiersClient;
pub use game::VerifiersTasks;
pub use options::{VerifiersOptions, verifiers_tasks};
