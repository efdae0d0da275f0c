//! Training and sampling on a server that speaks Tinker's protocol.

mod adapter;
mod client;
mod error;
mod learner;
mod messages;
mod policy;
mod published;
mod record;
mod remote_model;
mod retry;
mod scale;
mod session;
mod settings;
mod shifted_row;
mod window;

pub use error::TinkerError;
pub use learner::TinkerLearner;
pub use policy::TinkerPolicy;
pub use settings::TinkerSettings;
