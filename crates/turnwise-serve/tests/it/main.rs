//! Programs that play episodes through the gateway, and clients that play served environments.

#![allow(clippy::unwrap_used)] // a test that cannot go on stops
#![allow(clippy::needless_pass_by_value)] // `json!` is written where it is used

mod clients;
mod conversations;
mod hostile;
mod openenv;
mod openenv_traps;
mod ors;
mod ors_traps;
mod peers;
mod programs;
mod support;
mod verifiers;
mod verifiers_client;
mod verifiers_router;
mod verifiers_traps;
mod workers;
mod zmq;
