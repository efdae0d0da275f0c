//! Empty: the tests across crates are the modules of `it/main.rs`.
