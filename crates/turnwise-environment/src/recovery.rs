use serde::{Deserialize, Serialize};

/// How an episode goes on after the process that ran it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recovery {
    /// From a [`snapshot`](crate::Environment::snapshot), with [`restore`](crate::Environment::restore).
    Snapshot,
    /// By replay: reset with the same seed, then the recorded actions. The observations and rewards must be those of
    /// the first time; tool calls are answered from the ledger.
    Replay,
    /// Not at all: the episode starts anew from its seed, as another attempt.
    Restart,
}
