//! A remote policy against servers that speak vLLM's form of HTTP, over a small model whose every number is known.

#![allow(clippy::unwrap_used)] // a test that cannot go on stops

mod faults;
mod model;
mod sampling;
mod server;
mod weights;
