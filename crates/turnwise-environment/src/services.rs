use crate::ToolLedger;

/// What an episode offers its environment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Services {
    /// Where the calls of tools are written down. A handle: all copies are one ledger.
    pub ledger: ToolLedger,
}

impl Services {
    /// These services.
    #[must_use]
    pub fn new(ledger: ToolLedger) -> Self {
        Self { ledger }
    }
}
