//! Environments that are somebody else's server.

mod action;
pub(crate) mod address;
mod answers;
mod discovery;
mod fault;
pub(crate) mod http;
mod openenv;
mod ors;
pub(crate) mod patience;
pub(crate) mod peer;
mod rewards;
mod sse;
mod tasks;
mod tool_list;
mod turn;

pub use openenv::{ActingBy, OpenEnvOptions, openenv_tasks};
pub use ors::{OrsOptions, ors_tasks};
pub use rewards::RewardReading;
