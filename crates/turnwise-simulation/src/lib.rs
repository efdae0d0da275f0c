//! Simulation of the scheduler in a scripted world, with seeded faults, a paused clock, and books that must balance.
//!
#![doc = include_str!("../README.md")]
//!
//! [`simulate`] runs a whole training run on one thread whose clock jumps from event to event: the real
//! [`Trainer`](turnwise_training::Trainer) and its pool, with a scripted engine, environments, rubric and learner. One
//! seed determines everything: the settings ([`SimulationPlan`]), the slow, dead, lying or broken parts ([`FaultKind`]), the
//! halts, and the kills after which the process restores its last snapshot. At every step a witness compares the
//! trained tokens with the tokens that the engine sampled; the first difference is a [`Violation`] that names its
//! [`Invariant`] and the command that replays it. [`simulate_many`] runs many seeds on several threads.
//!
//! [`simulate_cluster`] and [`simulate_overlap`] say how long a step takes on more machines or more processors than there are
//! here: engine, learner and environments only take time.
//!
//! [`measure_orchestration`] drives the same scheduler with an engine that answers at once, to measure the cost of a
//! turn without the engine.

mod books;
mod checks;
mod cluster;
mod driver;
mod engine;
mod environment;
mod fault;
mod invariant;
mod learner;
mod letters;
mod many;
mod mutation;
mod orchestration;
mod overlap;
mod plan;
mod rubric;
mod timed;
mod trace;
mod usage;
mod witness;
mod world;

pub use cluster::{ClusterReport, ClusterSettings, ClusterWorld, cluster_world, simulate_cluster};
pub use driver::{Counterexample, SimulationReport, simulate};
pub use fault::FaultKind;
pub use invariant::{Invariant, Violation};
pub use many::{ManySettings, SeriesProgress, SeriesSummary, simulate_many};
pub use mutation::Mutation;
pub use orchestration::{
    OrchestrationError, OrchestrationReport, OrchestrationSettings, measure_orchestration,
};
pub use overlap::{ComputeCosts, OverlapReport, OverlapSettings, simulate_overlap};
pub use plan::{Mode, SimulationPlan};
pub use trace::TraceHash;
