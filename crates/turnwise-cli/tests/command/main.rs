//! The command as users run it: what it prints, what it refuses, how it exits.

mod bench;
mod reliability;
mod form;
mod render;
mod runs;
mod score;
mod support;
