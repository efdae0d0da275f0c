//! The weights that policies sample with.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use turnwise_trajectory::PolicyVersion;

use crate::EngineWeights;
use crate::snapshot::Snapshot;

/// The newest published weights, shared between a learner and its policies.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    newest: Arc<RwLock<Newest>>,
    /// The forms that engines asked for, a bit for each.
    asked: Arc<AtomicU8>,
}

/// The newest version.
#[derive(Debug)]
struct Newest {
    version: PolicyVersion,
    /// Counts publications.
    serial: u64,
    /// `None` as long as no engine asked for weights.
    weights: Option<Arc<Snapshot>>,
}

/// Weights and their version.
#[derive(Clone, Debug)]
pub(crate) struct Publication {
    pub(crate) version: PolicyVersion,
    /// Counts publications. Unlike a version, it never repeats, even when older weights are loaded.
    pub(crate) serial: u64,
    pub(crate) weights: Arc<Snapshot>,
}

impl Published {
    #[cfg(test)]
    pub(crate) fn new(version: PolicyVersion, weights: impl Into<Snapshot>) -> Self {
        let published = Self::unasked(version);
        let _ = published.publish(version, weights);
        published
    }

    /// Begins without weights, for a learner that no engine asked yet.
    pub(crate) fn unasked(version: PolicyVersion) -> Self {
        let first = Newest { version, serial: 0, weights: None };
        Self { newest: Arc::new(RwLock::new(first)), asked: Arc::default() }
    }

    /// Asks for weights in this form from the next publication on, and returns the form to publish.
    pub(crate) fn ask(&self, weights: EngineWeights) -> EngineWeights {
        let bit = 1 << weights as u8;
        form(self.asked.fetch_or(bit, Ordering::Relaxed) | bit)
    }

    /// Returns the form to publish, or `None` if no engine asked.
    pub(crate) fn wanted(&self) -> Option<EngineWeights> {
        let asked = self.asked.load(Ordering::Relaxed);
        (asked != 0).then(|| form(asked))
    }

    /// Returns the newest weights, if there are any.
    pub(crate) fn newest(&self) -> Option<Publication> {
        let Newest { version, serial, weights } = &*self.read();
        Some(Publication { version: *version, serial: *serial, weights: weights.clone()? })
    }

    pub(crate) fn version(&self) -> PolicyVersion {
        self.read().version
    }

    pub(crate) fn serial(&self) -> u64 {
        self.read().serial
    }

    pub(crate) fn publish(
        &self,
        version: PolicyVersion,
        weights: impl Into<Snapshot>,
    ) -> Publication {
        let weights = Arc::new(weights.into());
        let serial = self.advance(version, Some(weights.clone()));
        Publication { version, serial, weights }
    }

    /// Publishes a version whose weights no engine asked for.
    pub(crate) fn publish_unasked(&self, version: PolicyVersion) {
        let _ = self.advance(version, None);
    }

    fn advance(&self, version: PolicyVersion, weights: Option<Arc<Snapshot>>) -> u64 {
        let mut newest = self.newest.write().unwrap_or_else(PoisonError::into_inner);
        *newest = Newest { version, serial: newest.serial + 1, weights };
        newest.serial
    }

    fn read(&self) -> RwLockReadGuard<'_, Newest> {
        // No code panics while it holds the lock.
        self.newest.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the form for engines that asked, where all weights train: rounded ones only if every engine asked for them, since
/// rounding cannot be undone.
fn form(asked: u8) -> EngineWeights {
    let is_int8 = asked == 1 << EngineWeights::Int8 as u8;
    if is_int8 { EngineWeights::Int8 } else { EngineWeights::Compute }
}
