//! The conformance suite finds what it is there to find.

#![allow(clippy::unwrap_used)] // a test that cannot go on stops

mod environments;
mod policies;
mod suites;
