//! Remote policies and learners against servers that speak vLLM's form of HTTP or Tinker's protocol, over small models whose
//! every number is known.

#![allow(clippy::unwrap_used)] // a test that cannot go on stops

mod faults;
mod model;
mod sampling;
mod server;
mod tinker;
mod tinker_adapter;
mod tinker_model;
mod tinker_server;
mod weights;
