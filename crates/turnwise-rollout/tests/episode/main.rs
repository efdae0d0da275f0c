//! Tests of one episode: suspension, refusals, and faults that affect no other episode.

mod crafted;
mod deadlines;
mod forks;
mod guards;
mod ledger;
mod limits;
mod processes;
mod seats;
mod snapshots;
mod stops;
mod support;
mod tools;
