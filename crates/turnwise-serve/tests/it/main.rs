//! Programs that play episodes through the gateway, and clients that play served environments.

#![allow(clippy::unwrap_used)] // a test that cannot go on stops

mod clients;
mod conversations;
mod hostile;
mod openenv;
mod ors;
mod peers;
mod programs;
mod support;
