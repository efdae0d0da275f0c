//! The simulated scheduler, and that the simulation can fail.

mod mutations;
mod orchestration;
mod seeds;
