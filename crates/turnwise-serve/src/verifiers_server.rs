//! Environments for the trainers of verifiers: whole episodes, with the exact tokens.

mod endpoint;
mod episode;
mod node;
mod server;
mod session;

pub use server::{VerifiersServer, VerifiersSettings};
