//! Suites, task sets and typed tools.

mod suites;
mod typed_tools;
