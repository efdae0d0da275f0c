//! What happened in an episode, token by token, and its JSONL form.
//!
//! A [`Trajectory`] holds a [`MessageGraph`] whose nodes carry the tokens each message added, by kind. Only
//! [`SampledToken`]s have a log-probability and a policy version; for every other kind there is no field that could hold
//! one. [`SampledTokens`] keeps them as columns. [`write_line`] and [`read_line`] are the versioned JSONL form.

mod graph;
mod outcome;
mod record;
mod runs;
mod sampled;
mod sampling;
mod token;
mod trajectory;
mod version;

pub use graph::{Author, Edge, EdgeKind, GraphError, MessageGraph, Node, NodeId, Span};
pub use outcome::{AgentFault, CancelReason, InfraFault, InfraReason, Limit, Outcome};
pub use record::{FORMAT, RecordError, read_line, write_line};
pub use sampled::SampledTokens;
pub use sampling::Sampling;
pub use token::{MaskReason, SampledToken, SamplingId, TokenId, TokenKind};
pub use trajectory::{AgentId, GroupId, Identity, Score, SpawnedBy, StopReason, Trajectory, Turn};
pub use version::PolicyVersion;
