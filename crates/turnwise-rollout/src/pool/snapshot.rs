//! A pool as data, for disk or another process.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use turnwise_trajectory::{GroupId, Identity, PolicyVersion, Trajectory};

use super::breaker::BreakerCounts;
use super::groups::{GroupsSnapshot, OpenGroups};
use super::iteration::Unfinished;
use super::{Ledger, RolloutPool};
use crate::{Episode, EpisodeSnapshot, RestoreError};

/// A pool as data.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PoolSnapshot {
    finished: BTreeMap<GroupId, Vec<Trajectory>>,
    waiting: Vec<EpisodeSnapshot>,
    /// Episodes that cannot continue and restart.
    restart: Vec<Identity>,
    ledger: Ledger,
    breaker: BreakerCounts,
    unfinished: Option<Unfinished>,
    fruitless: u32,
    oldest: PolicyVersion,
    doomed: BTreeSet<GroupId>,
    n_lost: u64,
}

impl PoolSnapshot {
    /// Returns the number of suspended episodes that can continue.
    #[must_use]
    pub fn n_continuing(&self) -> usize {
        self.waiting.len()
    }

    /// Returns the number of episodes that must restart.
    #[must_use]
    pub fn n_restarting(&self) -> usize {
        self.restart.len()
    }

    /// Rejects open groups that do not have `size` members: such groups can be neither finished nor compared with
    /// others.
    fn check_size(&self, size: usize) -> Result<(), RestoreError> {
        let mut members: BTreeMap<GroupId, usize> = BTreeMap::new();
        for (group, finished) in &self.finished {
            *members.entry(*group).or_default() += finished.len();
        }
        let waiting = self.waiting.iter().map(EpisodeSnapshot::identity).chain(&self.restart);
        for identity in waiting {
            if !self.finished.contains_key(&identity.group) {
                let group = identity.group.0;
                return Err(RestoreError::State(format!("its group {group} is not open")));
            }
            *members.entry(identity.group).or_default() += 1;
        }
        match members.into_values().find(|members| *members != size) {
            Some(was) => Err(RestoreError::GroupSize { was, is: size }),
            None => Ok(()),
        }
    }
}

impl RolloutPool {
    /// Returns the pool as data.
    ///
    /// # Panics
    /// Panics if episodes are running; call [`halt`](Self::halt) first.
    #[must_use]
    pub fn snapshot(&self) -> PoolSnapshot {
        assert!(
            self.running.len() + self.groups.n_grading() == 0,
            "halt the pool before its snapshot"
        );
        let GroupsSnapshot { finished, doomed, n_lost, ledger } = self.groups.snapshot();
        let mut snapshot = PoolSnapshot {
            finished,
            ledger,
            breaker: self.breaker.counts(),
            unfinished: self.queue.unfinished().cloned(),
            fruitless: self.fruitless,
            oldest: self.oldest,
            doomed,
            n_lost,
            ..PoolSnapshot::default()
        };
        for episode in self.queue.episodes() {
            match episode.snapshot() {
                Some(episode) => snapshot.waiting.push(episode),
                None => snapshot.restart.push(episode.identity().clone()),
            }
        }
        snapshot
    }

    /// Restores a snapshot into an empty pool.
    ///
    /// # Errors
    /// If an episode cannot be restored, or the open groups have another size.
    ///
    /// # Panics
    /// Panics if the pool has open groups.
    pub fn restore(&mut self, snapshot: PoolSnapshot) -> Result<(), RestoreError> {
        assert!(self.groups.len() == 0, "restore a pool before using it");
        snapshot.check_size(self.settings.group_size)?;
        let PoolSnapshot { finished, doomed, n_lost, ledger, .. } = snapshot;
        self.groups = OpenGroups::restore(GroupsSnapshot { finished, doomed, n_lost, ledger });
        self.breaker.restore(snapshot.breaker);
        self.queue.continue_iteration(snapshot.unfinished);
        self.fruitless = snapshot.fruitless;
        self.oldest = snapshot.oldest;
        let mut restart = snapshot.restart;
        for episode in snapshot.waiting {
            let identity = episode.identity().clone();
            match Episode::restore_against(episode, &*self.tasks, &*self.agents, &self.opponent) {
                Ok(episode) => self.queue.wait(self.recorded(episode)),
                // An environment that refuses its snapshot costs one attempt, not the run.
                Err(RestoreError::Environment(error)) => {
                    tracing::warn!(group = identity.group.0, member = identity.member, %error, "an episode restarts");
                    restart.push(identity);
                }
                Err(error) => return Err(error),
            }
        }
        for mut identity in restart {
            identity.attempt += 1;
            self.queue.wait(self.episode(identity));
        }
        Ok(())
    }
}
