//! Rollout workers: processes on other machines that run a trainer's episodes.
//!
//! The trainer's [`WorkerHub`] keeps every episode and leases it out; a [`RolloutWorker`] advances it turn by turn with the trainer's
//! engine, and reports its state after each turn. A worker that is gone costs the turns that it had not reported.

mod engine;
mod hub;
mod jobs;
mod routes;
mod wire;
mod worker;

pub use hub::{HubSettings, RestoreEpisode, WorkerHub};
pub use wire::RunDescription;
pub use worker::{RolloutWorker, WorkEnd, WorkerError, WorkerReport};
