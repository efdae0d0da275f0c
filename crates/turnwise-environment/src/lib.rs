//! Environments of language-model agents: messages, tools, rewards and task sets.
//!
#![doc = include_str!("../README.md")]
//!
//! Start with the contract of [`Environment`], then hand tasks to a trainer as a [`TaskSet`]; a [`Suite`] adds what a
//! command line needs to offer them by name.
//!
//! Not supported: agents that act at the same time (seats take turns), and images in messages.

mod answer;
mod babbler;
pub mod check;
mod demonstrator;
mod environment;
mod error;
mod ledger;
mod ledger_file;
mod message;
mod observation;
mod recovery;
mod rubric;
mod seat;
mod seed;
mod services;
mod step;
mod suite;
mod task;
mod tasks;
mod tool;
mod toolbox;
mod tools;
mod turn_request;

pub use answer::Answer;
pub use async_trait::async_trait;
pub use babbler::Babbler;
pub use demonstrator::Demonstrator;
pub use environment::Environment;
pub use error::{EnvironmentError, ErrorKind};
pub use ledger::{CallKey, CallRecord, Issued, LedgerError, LedgerStore, ToolLedger};
pub use ledger_file::LedgerFile;
pub use message::{Action, CallAttempt, CallError, MalformedCall, Message, Role, ToolCall};
pub use observation::Observation;
pub use recovery::Recovery;
pub use rubric::{Rubric, Transcript};
pub use seat::{Seat, SeatReward};
pub use seed::{Random, derive_seed};
pub use services::Services;
pub use step::{Ending, LateReward, Step};
pub use suite::{Split, Suite};
pub use task::{TaskKey, TaskSet};
pub use tasks::Tasks;
pub use tool::{Tool, ToolReply, ToolSpec};
pub use toolbox::{ToolRound, Toolbox};
pub use tools::{AsyncTool, IntoReply, Reply, ToolError, Tools};
pub use turn_request::TurnRequest;
