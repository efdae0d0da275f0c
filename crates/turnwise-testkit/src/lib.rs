//! Scripted fakes, conformance suites and fault injection.
//!
//! [`TabularModel`] is a policy and a learner that is exact and needs no network, so that the whole loop runs in
//! milliseconds; [`AlphabetRenderer`] is its tokenizer. [`Interrupting`], [`Faulty`] and [`Lying`] wrap any policy, and
//! [`FaultyTasks`] any task set. [`conformance`] is run on every implementation of a trait.

mod alphabet;
pub mod conformance;
mod environments;
mod policies;
mod tabular;

pub use alphabet::{AlphabetRenderer, END, ENVIRONMENT, POLICY};
pub use environments::{Echo, Fault, FaultyTasks};
pub use policies::{Faulty, Interrupting, Lying};
pub use tabular::TabularModel;
