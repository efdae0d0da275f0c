//! Scripted fakes, conformance suites and fault injection.
//!
#![doc = include_str!("../README.md")]
//!
//! [`TabularModel`] is an exact policy and learner without a network, so that the whole training loop runs in
//! milliseconds; [`AlphabetRenderer`] is its tokenizer. [`Hashed`] samples from a different distribution in every
//! context. [`Interrupting`], [`Faulty`], [`Lying`] and [`Sessions`] wrap any policy, [`FaultyTasks`] any task set,
//! [`Panicking`] and [`Replayed`] any environment. Tests run [`conformance`] on every implementation of a trait.

mod alphabet;
pub mod conformance;
mod environments;
mod policies;
mod tabular;

pub use alphabet::{AlphabetRenderer, END, ENVIRONMENT, POLICY};
pub use environments::{
    Blocking, Crash, Echo, Fault, FaultyTasks, Method, Panicking, Replayed, Shop, Till,
};
pub use policies::{Faulty, Hashed, Interrupting, Lying, Sessions};
pub use tabular::TabularModel;
