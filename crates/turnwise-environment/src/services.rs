use crate::ToolLedger;

/// The services that an episode offers to its environment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Services {
    /// The record of tool calls. A handle: all clones share one ledger.
    pub ledger: ToolLedger,
}

impl Services {
    /// Creates the services of an episode.
    #[must_use]
    pub fn new(ledger: ToolLedger) -> Self {
        Self { ledger }
    }
}
