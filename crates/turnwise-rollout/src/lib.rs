//! Episodes: how they run, suspend and resume.
//!
#![doc = include_str!("../README.md")]
//!
//! An [`Episode`] runs an [`Agent`] against an environment over many turns. [`Episode::advance`] runs it within an
//! [`Allowance`] and returns [`Progress::Finished`] or [`Progress::Suspended`]: a suspended episode is a value that can
//! be kept, written to disk ([`EpisodeSnapshot`]) and continued under newer weights. [`RolloutPool`] runs groups of
//! episodes side by side. [`Policy`] is the inference engine, and only a [`Renderer`] makes tokens from text.
//! [`replay`] plays a recorded episode again without an engine, and [`rescore`] runs a rubric over stored trajectories.

mod agent;
mod allowance;
mod blocking;
mod chat_agent;
mod constraint;
mod deadline;
mod episode;
mod grading;
mod group;
mod limits;
mod meter;
mod opponent;
mod panic_text;
mod policy;
mod pool;
mod preface;
mod recorded;
mod renderer;
mod replay;
mod rescore;
mod runner;
mod sampler;

pub use agent::{Act, Agent, AgentError, AgentFactory, Decision, Room};
pub use allowance::{Allowance, StopHandle, StopSignal, stop_signal};
pub use blocking::BlockingThreads;
pub use chat_agent::{ChatAgent, ChatAgents, Compaction};
pub use constraint::{Answers, Continued, FirstOf, TokenConstraint};
pub use deadline::Deadline;
pub use episode::{
    Episode, EpisodeSnapshot, Fork, ForkError, Progress, RestoreError, SnapshotError, TurnWatcher,
};
pub use group::Group;
pub use limits::Limits;
pub use meter::{Meter, Reading};
pub use opponent::{Opponent, PlayerFactory};
pub use policy::{Policy, PolicyError, Sample, SampleRequest, SessionId, check_sample};
pub use pool::{
    Census, Faults, Iteration, Ledger, NO_TURN, PoolSettings, PoolSnapshot, RolloutError,
    RolloutPool,
};
pub use preface::Preface;
pub use recorded::{Divergence, RecordedPolicy};
pub use renderer::{Bridged, EndedTurn, RenderError, Rendered, Renderer, Said};
pub use replay::{ReplayError, replay};
pub use rescore::{RescoreError, rescore};
pub use runner::{EpisodeRunner, InProcess};
pub use sampler::{Sampler, uniform_at};
