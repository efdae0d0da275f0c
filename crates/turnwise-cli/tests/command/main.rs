//! The command as users run it: output, refusals, exit codes.

mod bench;
mod doctor;
mod form;
mod reliability;
mod render;
mod runs;
mod score;
mod support;
