use serde::{Deserialize, Serialize};

/// How an episode goes on once the process that ran it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recovery {
    /// From [`snapshot`](crate::Environment::snapshot) and [`restore`](crate::Environment::restore): the state goes on.
    Snapshot,
    /// By doing it again: reset with the same seed, then the recorded actions. What comes back must be what came back the
    /// first time; calls of tools are answered from the ledger.
    Replay,
    /// Not at all: the episode starts anew from its seed, as another attempt.
    Restart,
}
