//! Engines and trainers on other machines: vLLM and SGLang as policies, Tinker as learner and policy.
//!
#![doc = include_str!("../README.md")]
//!
//! A [`RemotePolicy`] samples from one or several replicas of a server. [`RemotePolicy::publish`] gives new weights to all of
//! them, and checks with a [`WeightProbe`] that each replica serves exactly these.
//! A [`TinkerLearner`] trains on a server that speaks Tinker's protocol, and a [`TinkerPolicy`] samples there.

mod fault;
mod http;
mod policy;
mod probe;
mod published;
mod quarantine;
mod replica;
mod replicas;
mod secret;
mod server;
mod settings;
mod sglang;
mod stream;
mod tinker;
mod vllm;

pub use fault::RemoteError;
pub use policy::RemotePolicy;
pub use probe::WeightProbe;
pub use published::WeightFiles;
pub use secret::{Secret, SecretError};
pub use server::Server;
pub use settings::RemoteSettings;
pub use tinker::{TinkerError, TinkerLearner, TinkerPolicy, TinkerSettings};
