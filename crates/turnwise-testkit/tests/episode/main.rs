//! One episode: what survives, what is refused, what breaks and what that does to anybody else.

mod crafted;
mod deadlines;
mod forks;
mod guards;
mod ledger;
mod limits;
mod processes;
mod snapshots;
mod support;
mod tools;
