//! Environments for the trainers of others.

mod guard;
mod hosted;
mod openenv;
mod ors;
mod refused;
mod server;
mod sessions;
mod settings;
mod tasks;

pub use server::EnvironmentServer;
pub use settings::{Protocol, RewardForm, ServerSettings};
