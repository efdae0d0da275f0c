//! The conformance suite finds what it is there to find.

mod environments;
mod policies;
mod suites;
