//! A rollout suspended, written to JSON, and resumed under newer weights, by hand.
fn main() {}
