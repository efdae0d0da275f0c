//! Tests that the conformance suites find broken contracts.

#![allow(clippy::unwrap_used)] // a test that cannot go on stops

mod environments;
mod policies;
mod suites;
