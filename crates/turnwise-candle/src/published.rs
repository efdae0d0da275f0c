//! The weights that policies sample with.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use turnwise_trajectory::PolicyVersion;

use crate::EngineWeights;
use crate::snapshot::Snapshot;

/// The newest published weights, shared between a learner and its policies.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    newest: Arc<RwLock<Publication>>,
    /// The forms that engines asked for, a bit for each.
    asked: Arc<AtomicU8>,
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
    pub(crate) fn new(version: PolicyVersion, weights: impl Into<Snapshot>) -> Self {
        let first = Publication { version, serial: 0, weights: Arc::new(weights.into()) };
        Self { newest: Arc::new(RwLock::new(first)), asked: Arc::default() }
    }

    /// Asks for weights in this form from the next publication on.
    pub(crate) fn ask(&self, weights: EngineWeights) {
        self.asked.fetch_or(1 << weights as u8, Ordering::Relaxed);
    }

    /// Returns the form to publish, where all weights train: rounded ones only if every engine asked for them, since rounding
    /// cannot be undone.
    pub(crate) fn wanted(&self) -> EngineWeights {
        let is_int8 = self.asked.load(Ordering::Relaxed) == 1 << EngineWeights::Int8 as u8;
        if is_int8 { EngineWeights::Int8 } else { EngineWeights::Compute }
    }

    pub(crate) fn newest(&self) -> Publication {
        // No code panics while it holds the lock.
        self.newest.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn version(&self) -> PolicyVersion {
        self.newest.read().unwrap_or_else(PoisonError::into_inner).version
    }

    pub(crate) fn serial(&self) -> u64 {
        self.newest.read().unwrap_or_else(PoisonError::into_inner).serial
    }

    pub(crate) fn publish(&self, version: PolicyVersion, weights: impl Into<Snapshot>) {
        let weights = Arc::new(weights.into());
        let mut newest = self.newest.write().unwrap_or_else(PoisonError::into_inner);
        *newest = Publication { version, serial: newest.serial + 1, weights };
    }
}
