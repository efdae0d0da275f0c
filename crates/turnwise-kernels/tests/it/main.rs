//! Tests of the public interface under load, also run by miri with smaller sizes.

mod portable;
mod team;
