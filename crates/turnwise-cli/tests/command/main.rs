//! The command as users run it: what it prints, what it refuses, how it exits.

mod bench;
mod form;
mod reliability;
mod render;
mod runs;
mod score;
mod support;
