//! Suites, task sets and typed tools.

mod golden;
mod suites;
mod typed_tools;
