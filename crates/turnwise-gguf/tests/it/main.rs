//! Tests of the second engine against the first, against its contract, and of its workarounds.

#![allow(clippy::unwrap_used)] // a test that cannot go on stops

mod export;
mod followers;
mod parity;
mod policies;
mod support;
mod traps;
