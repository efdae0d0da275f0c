//! Scripted fakes, conformance suites, property tests and fault injection.
//!
#![doc = include_str!("../README.md")]
//!
//! [`TabularModel`] is an exact policy and learner without a network, so that the whole training loop runs in
//! milliseconds; [`AlphabetRenderer`] is its tokenizer. [`Hashed`] samples from a different distribution in every
//! context. [`Interrupting`], [`Faulty`], [`Lying`] and [`Sessions`] wrap any policy, [`FaultyTasks`] any task set,
//! [`Panicking`] and [`Replayed`] any environment. Tests run [`conformance`] on every implementation of a trait;
//! [`objectives`] and [`credits`] have the properties of objectives and credits, one check each. [`Built`] is a
//! trajectory that a test builds turn by turn.

mod alphabet;
pub mod conformance;
pub mod credits;
mod environments;
pub mod objectives;
mod policies;
mod recording;
pub mod scene;
mod settings;
mod tabular;
mod trajectories;

pub use alphabet::{AlphabetRenderer, END, ENVIRONMENT, POLICY};
pub use environments::{
    Blocking, Crash, Duel, Echo, Fault, FaultyTasks, Method, Panicking, Replayed, Shop, Till,
};
pub use policies::{Faulty, Hashed, Interruptible, Interrupting, Lying, Sessions};
/// The property-testing library of the checks, re-exported so that tests need no dependency of their own.
pub use proptest;
pub use recording::{Cuts, RecordedExchange, RecordingPolicy, hashed_logits, play};
pub use settings::SMALL_MODEL;
pub use tabular::TabularModel;
pub use trajectories::{Built, rewarded, scored_token};
