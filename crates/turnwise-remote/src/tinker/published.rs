//! The weights that policies sample with, and when they may.

use std::sync::{Mutex, PoisonError};

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, watch};
use turnwise_trajectory::PolicyVersion;

/// What learner and policies share.
///
/// SkyRL's JAX back end samples with the adapter that it trains: a request for earlier weights after a step either gets the
/// newer ones or puts the earlier ones in their place. Therefore nothing is sampled between a step and the publication.
#[derive(Debug)]
pub(super) struct Published {
    newest: Mutex<Newest>,
    /// Held for reading by requests to sample, for writing by a step.
    gate: RwLock<()>,
    /// False between a step and the next publication.
    is_open: watch::Sender<bool>,
}

/// The newest weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Newest {
    pub(super) version: PolicyVersion,
    /// The server's path.
    pub(super) path: String,
}

impl Published {
    pub(super) fn new(newest: Newest) -> Self {
        let (gate, is_open) = (RwLock::default(), watch::Sender::new(true));
        Self { newest: Mutex::new(newest), gate, is_open }
    }

    pub(super) fn newest(&self) -> Newest {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether the newest weights are those of the learner.
    pub(super) fn is_open(&self) -> bool {
        *self.is_open.borrow()
    }

    /// Waits until no request samples, and lets none begin before the next publication.
    pub(super) async fn close(&self) -> RwLockWriteGuard<'_, ()> {
        self.is_open.send_replace(false);
        self.gate.write().await
    }

    /// Publishes weights, and returns the earlier ones.
    pub(super) fn publish(&self, newest: Newest) -> Newest {
        let mut held = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let earlier = std::mem::replace(&mut *held, newest);
        drop(held);
        self.is_open.send_replace(true);
        earlier
    }

    /// Waits until the newest weights may sample; they stay the newest while the guard is held.
    pub(super) async fn enter(&self) -> RwLockReadGuard<'_, ()> {
        let mut is_open = self.is_open.subscribe();
        loop {
            // Fails if the sender is gone, which `self` has.
            let _ = is_open.wait_for(|open| *open).await;
            let guard = self.gate.read().await;
            if self.is_open() {
                return guard;
            }
        }
    }
}
