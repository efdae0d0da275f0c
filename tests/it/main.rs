//! Properties across crates. A test's name is a fact; its comment says which numbered statement of the specification it
//! holds.

mod admission;
mod batches;
mod conservation;
mod conversation;
mod credit;
mod determinism;
mod endings;
mod engines;
mod learning;
mod overlap;
mod pitfalls;
mod ratio_groups;
mod records;
mod refusals;
mod replay;
mod rubrics;
mod sampling;
mod settings;
mod staleness;
mod statements;
mod stops;
mod support;
mod suspension;
mod tidy;
mod versions;
