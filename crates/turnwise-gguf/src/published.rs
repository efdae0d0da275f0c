//! The weights that an engine samples with.

use std::sync::{Arc, PoisonError, RwLock};

use turnwise_trajectory::PolicyVersion;

use crate::GgufModel;

/// Weights with their version.
#[derive(Clone, Debug)]
pub(crate) struct Publication {
    pub(crate) version: PolicyVersion,
    /// The number of the publication: unlike a version it never repeats, not even when older weights are loaded.
    pub(crate) serial: u64,
    /// The model that sequences copy.
    pub(crate) prototype: Arc<GgufModel>,
}

/// The newest publication, shared between the publisher and the sampling threads.
#[derive(Debug)]
pub(crate) struct Published(RwLock<Publication>);

impl Published {
    pub(crate) fn new(version: PolicyVersion, model: GgufModel) -> Self {
        let prototype = Arc::new(model);
        Self(RwLock::new(Publication { version, serial: 0, prototype }))
    }

    pub(crate) fn newest(&self) -> Publication {
        // No holder of the lock can panic halfway.
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn version(&self) -> PolicyVersion {
        self.0.read().unwrap_or_else(PoisonError::into_inner).version
    }

    pub(crate) fn serial(&self) -> u64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).serial
    }

    pub(crate) fn publish(&self, version: PolicyVersion, model: GgufModel) {
        let prototype = Arc::new(model);
        let mut newest = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *newest = Publication { version, serial: newest.serial + 1, prototype };
    }
}
