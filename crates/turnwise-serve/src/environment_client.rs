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
mod verifiers;

pub(crate) use address::ServerAddress;
pub(crate) use http::Ask;
pub(crate) use patience::Patience;
pub(crate) use peer::Peer;

pub use openenv::{ActingBy, OpenEnvOptions, openenv_tasks};
pub use ors::{OrsOptions, ors_tasks};
pub use rewards::RewardReading;
pub use verifiers::{VerifiersClient, VerifiersOptions, VerifiersTasks, verifiers_tasks};
