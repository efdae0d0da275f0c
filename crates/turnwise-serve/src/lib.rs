//! Doors to other programs: agent programs, and the trainers of others.
//!
#![doc = include_str!("../README.md")]
//!
//! A [`Gateway`] listens; [`ProgramTasks`] starts an agent program for each episode, whose environment is that program:
//! what it asks for is an observation, and what it is answered is an action. [`GatewayAgents`] notes what an answer needs
//! beside its text, such as its number of tokens. [`VerifiersTasks`] are episodes that a server of verifiers plays in a
//! program's place. An [`EnvironmentServer`] serves a suite by a protocol that others speak. A
//! [`WorkerHub`] leases a trainer's episodes to [`RolloutWorker`]s on other machines.

mod agents;
mod answer;
mod anthropic;
mod api_error;
mod call;
mod environment_client;
mod environment_server;
mod exchange;
mod gateway;
mod key;
mod listener;
mod openai;
mod origin;
mod program;
mod routes;
mod session;
mod tool_choice;
mod verifiers_server;
mod workers;
mod zmtp;

pub use agents::GatewayAgents;
pub use environment_client::{
    ActingBy, OpenEnvOptions, OrsOptions, RewardReading, VerifiersClient, VerifiersOptions,
    VerifiersTasks, openenv_tasks, ors_tasks, verifiers_tasks,
};
pub use environment_server::{EnvironmentServer, Protocol, RewardForm, ServerSettings};
pub use gateway::{Gateway, GatewaySettings};
pub use listener::BindError;
pub use program::{OwnTasks, ProgramSettings, ProgramTasks, own_tasks};
pub use verifiers_server::{VerifiersServer, VerifiersSettings};
pub use workers::{
    HubSettings, RestoreEpisode, RolloutWorker, RunDescription, WorkEnd, WorkerError, WorkerHub,
    WorkerReport,
};
