//! Trajectories of episodes, token by token, and their JSONL form.
//!
#![doc = include_str!("../README.md")]
//!
//! A [`Trajectory`] holds a [`MessageGraph`] whose nodes carry the tokens that each message added, by kind. Only
//! [`SampledToken`]s have a log-probability and a policy version; the other kinds have no such fields.
//! [`SampledTokens`] stores sampled tokens as columns. [`write_line`] and [`read_line`] write and read the versioned
//! JSONL form.

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
pub use trajectory::{GroupId, Identity, Score, StopReason, Trajectory, Turn};
pub use version::PolicyVersion;
