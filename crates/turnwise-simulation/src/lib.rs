//! The scheduler under a scripted world: seeded faults, a paused clock, and books that must balance.
//!
//! [`simulate`] runs a whole training run on one thread whose clock jumps from event to event: the real
//! [`Trainer`](turnwise_training::Trainer) and its pool, with an engine, environments, a rubric and a learner that are
//! scripted. Everything comes from one seed: the settings ([`Plan`]), what is slow, dead, lying or broken ([`FaultKind`]),
//! when somebody asks for a halt, and when the process is killed and goes on from its last snapshot. At every step the
//! world compares what was trained with what it handed out itself; the first difference is a [`Violation`] that names its
//! [`Invariant`] and the command that replays it. [`simulate_many`] does that for many seeds on several threads.
//!
//! [`measure_orchestration`] is the other driver of the same scheduler: an engine that answers at once, to see what a turn
//! costs when the engine costs nothing.

mod books;
mod checks;
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
mod plan;
mod rubric;
mod trace;
mod usage;
mod witness;
mod world;

pub use driver::{Failure, SimulationReport, simulate};
pub use fault::FaultKind;
pub use invariant::{Invariant, Violation};
pub use many::{ManySettings, Progress, Summary, simulate_many};
pub use mutation::Mutation;
pub use orchestration::{
    OrchestrationError, OrchestrationReport, OrchestrationSettings, measure_orchestration,
};
pub use plan::{Mode, Plan};
pub use trace::TraceHash;
