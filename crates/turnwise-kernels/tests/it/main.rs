//! The public interface under load. Also run by miri, with less of everything.

mod portable;
mod team;
