//! Scripted fakes, conformance suites and fault injection.
//!
//! [`TabularModel`] is a policy and a learner that is exact and needs no network, so that the whole loop runs in
//! milliseconds; [`AlphabetRenderer`] is its tokenizer. [`Hashed`] draws from a distribution of its own in every context.
//! [`Interrupting`], [`Faulty`], [`Lying`] and [`Sessions`] wrap any policy, [`FaultyTasks`] any task set, [`Panicking`] and
//! [`Replayed`] any environment. [`conformance`] is run on every implementation of a trait.

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
