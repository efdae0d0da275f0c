//! The second engine against the first, against its contract, and against the traps it works around.

#![allow(clippy::unwrap_used)] // a test that cannot go on stops

mod export;
mod followers;
mod parity;
mod policies;
mod support;
mod traps;
