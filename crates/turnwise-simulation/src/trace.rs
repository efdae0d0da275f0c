use std::fmt;

use sha2::{Digest, Sha256};

/// The hash of all events of a simulation, in order.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceHash(pub [u8; 32]);

impl fmt::Display for TraceHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(8).try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for TraceHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "TraceHash({self})")
    }
}

/// Hashes events as they happen.
#[derive(Default)]
pub(crate) struct Trace {
    hasher: Sha256,
    n_events: u64,
}

impl Trace {
    /// Hashes an event: a word and numbers. The count of numbers is hashed too, so that different streams of events
    /// differ.
    pub(crate) fn event(&mut self, word: &str, numbers: &[u64]) {
        self.n_events += 1;
        self.hasher.update(word.as_bytes());
        self.hasher.update((numbers.len() as u64).to_le_bytes());
        for number in numbers {
            self.hasher.update(number.to_le_bytes());
        }
    }

    pub(crate) fn n_events(&self) -> u64 {
        self.n_events
    }

    pub(crate) fn hash(&self) -> TraceHash {
        TraceHash(self.hasher.clone().finalize().into())
    }
}
