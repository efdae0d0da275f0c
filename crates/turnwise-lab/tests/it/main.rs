//! Tests of the laboratory.

#![allow(clippy::unwrap_used)] // a test that cannot go on stops

mod credit;
mod exactness;
mod problems;
