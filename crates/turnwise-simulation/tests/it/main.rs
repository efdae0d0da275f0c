//! Tests of the simulated scheduler, and of the simulation's ability to fail.

mod mutations;
mod orchestration;
mod seeds;
