use std::collections::BTreeMap;

use serde::Deserialize;
use turnwise_rollout::{Group, Ledger};
use turnwise_trajectory::{GroupId, Identity};

use crate::{Invariant, Violation};

/// The books of a trainer's snapshot, read from its serialised form: the form that a run is restored from is the form
/// that is checked.
#[derive(Debug, Deserialize)]
pub(crate) struct SnapshotBooks {
    pub(crate) progress: ProgressBook,
    scheduler: SchedulerBook,
}

#[derive(Debug, Deserialize)]
struct SchedulerBook {
    pool: PoolBook,
    ready: Vec<Group>,
    flat: Vec<Group>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ProgressBook {
    pub(crate) trained: u64,
    dropped: BTreeMap<String, u64>,
}

#[derive(Debug, Deserialize)]
struct PoolBook {
    finished: BTreeMap<GroupId, Vec<Finished>>,
    waiting: Vec<Waiting>,
    restart: Vec<Identity>,
    ledger: Ledger,
}

#[derive(Debug, Deserialize)]
struct Finished {
    identity: Identity,
}

#[derive(Debug, Deserialize)]
struct Waiting {
    state: WaitingState,
}

#[derive(Debug, Deserialize)]
struct WaitingState {
    identity: Identity,
}

impl SnapshotBooks {
    pub(crate) fn read(snapshot: &str) -> Result<Self, Violation> {
        serde_json::from_str(snapshot).map_err(|error| {
            Violation::new(Invariant::Restore, format!("a snapshot that cannot be read: {error}"))
        })
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.scheduler.pool.ledger
    }

    /// Iterates over the episodes that will continue.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &Identity> {
        let waiting = self.scheduler.pool.waiting.iter().map(|waiting| &waiting.state.identity);
        waiting.chain(&self.scheduler.pool.restart)
    }

    /// Iterates over the finished episodes of unfinished groups.
    pub(crate) fn finished(&self) -> impl Iterator<Item = &Identity> {
        self.scheduler.pool.finished.values().flatten().map(|finished| &finished.identity)
    }

    /// Returns the number of episodes that were delivered and neither trained nor dropped.
    pub(crate) fn delivered_open(&self) -> u64 {
        let groups = self.scheduler.ready.iter().chain(&self.scheduler.flat);
        let ready = groups.flat_map(|group| &group.members);
        ready.filter(|member| member.reward().is_some()).count() as u64
    }

    pub(crate) fn dropped_by_trainer(&self) -> u64 {
        self.progress.dropped.values().sum()
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped_by_trainer() + self.scheduler.pool.ledger.dropped.values().sum::<u64>()
    }
}
