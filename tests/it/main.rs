//! The layout of the code, and the table of statements with their tests.

mod statements;
mod tidy;
