//! Properties of credit, batches and the training loop. A test's name is a fact; its comment says which numbered statement
//! of `statements.md` it holds.

mod admission;
mod batches;
mod checkpoints;
mod conservation;
mod credit;
mod demonstrations;
mod determinism;
mod differences;
mod learning;
mod overlap;
mod ratio_groups;
mod refusals;
mod seats;
mod settings;
mod staleness;
mod stops;
mod support;
