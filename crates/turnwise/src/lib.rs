//! Multi-turn reinforcement learning for language-model agents.
//!
#![doc = include_str!("../README.md")]

#[cfg(feature = "candle")]
pub use turnwise_candle as candle;
pub use turnwise_chat as chat;
#[cfg(feature = "cli")]
pub use turnwise_cli::main;
pub use turnwise_environment as environment;
#[cfg(feature = "gguf")]
pub use turnwise_gguf as gguf;
pub use turnwise_objective as objective;
pub use turnwise_rollout as rollout;
#[cfg(feature = "cli")]
pub use turnwise_run as run;
#[cfg(feature = "cli")]
pub use turnwise_run::Registry;
pub use turnwise_training as training;
pub use turnwise_trajectory as trajectory;

#[cfg(feature = "cli")]
pub mod guide;

/// How the crates fit together, and the promises that hold between them.
#[doc = include_str!("../docs/architecture.md")]
pub mod architecture {}

/// What is promised of rollouts and of the objective, statement by statement, each with the tests that hold it.
#[doc = include_str!("../docs/statements.md")]
pub mod statements {}

/// One word for each thing.
#[doc = include_str!("../docs/glossary.md")]
pub mod glossary {}

/// How to build for NVIDIA graphics processors, and what runs there.
#[doc = include_str!("../docs/cuda.md")]
pub mod cuda {}

/// What changed for users, newest first.
#[doc = include_str!("../docs/changelog.md")]
pub mod changelog {}
