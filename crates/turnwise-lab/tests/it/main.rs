//! What the laboratory says, and that it can be believed.

#![allow(clippy::unwrap_used)] // a test that cannot go on stops

mod credit;
mod exactness;
mod problems;
