//! The episodes that are not being advanced.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use turnwise_trajectory::CancelReason;

use super::PoolSettings;
use super::iteration::Unfinished;
use super::running::{Due, Place, place};
use crate::Episode;

/// The episodes that are not being advanced, and the number of tokens that each has sampled in the current iteration.
#[derive(Debug, Default)]
pub(super) struct EpisodeQueue {
    /// Suspended and fresh episodes.
    waiting: Vec<Episode>,
    /// Episodes to advance as soon as there is room.
    due: VecDeque<Due>,
    /// The tokens that suspended episodes have sampled in the current iteration.
    used: BTreeMap<Place, u64>,
    /// The iteration that a stop cut short, and that the next call continues.
    unfinished: Option<Unfinished>,
}

impl EpisodeQueue {
    /// Returns the number of waiting and due episodes.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.due.len()
    }

    /// Returns the number of due episodes.
    pub(super) fn n_due(&self) -> usize {
        self.due.len()
    }

    /// Iterates over the waiting and the due episodes.
    pub(super) fn episodes(&self) -> impl Iterator<Item = &Episode> {
        self.waiting.iter().chain(self.due.iter().map(|due| &due.episode))
    }

    /// Adds an episode that waits to be made due.
    pub(super) fn wait(&mut self, episode: Episode) {
        self.waiting.push(episode);
    }

    /// Adds an episode behind those that are due.
    pub(super) fn push_due(&mut self, due: Due) {
        self.due.push_back(due);
    }

    /// Removes the next due episode.
    pub(super) fn pop_due(&mut self) -> Option<Due> {
        self.due.pop_front()
    }

    /// Records the number of tokens that a suspended episode has sampled in the iteration.
    pub(super) fn record_used(&mut self, place: Place, n: u64) {
        self.used.insert(place, n);
    }

    /// Makes waiting episodes due: suspended ones before fresh ones, oldest version first. Returns the number of
    /// suspended ones.
    pub(super) fn make_due(&mut self) -> usize {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.sort_by_cached_key(|episode| {
            let identity = episode.identity();
            let oldest = episode.oldest_version();
            (episode.suspensions() == 0, oldest, identity.group, identity.member)
        });
        let n_resumed = waiting.iter().filter(|episode| episode.suspensions() > 0).count();
        let at_once = |episode| Due { episode, delay: Duration::ZERO, used: 0 };
        self.due.extend(waiting.into_iter().map(at_once));
        n_resumed
    }

    /// Makes the episodes of the iteration due. Returns the number of tokens that each may sample in it, and the number
    /// of suspended ones if the iteration is a new one.
    pub(super) fn begin_iteration(&mut self, settings: &PoolSettings) -> (u64, usize) {
        self.used.clear();
        let Some(unfinished) = self.unfinished.take() else {
            let share = settings.share(self.len());
            return (share, self.make_due());
        };
        let share = unfinished.share;
        let used = unfinished.used();
        for episode in std::mem::take(&mut self.waiting) {
            let used = used.get(&place(episode.identity())).copied().unwrap_or(0);
            if used < share {
                self.due.push_back(Due { episode, delay: Duration::ZERO, used });
            } else {
                // The episode has used its share, and stays suspended until the next iteration.
                self.used.insert(place(episode.identity()), used);
                self.waiting.push(episode);
            }
        }
        (share, 0)
    }

    /// Moves the remaining due episodes to the waiting ones. An iteration that `is_cut_short` continues at the next call.
    pub(super) fn end_iteration(&mut self, share: u64, is_cut_short: bool) {
        let mut used = std::mem::take(&mut self.used);
        for Due { episode, used: of_attempts, .. } in self.due.drain(..) {
            used.insert(place(episode.identity()), of_attempts);
            self.waiting.push(episode);
        }
        if is_cut_short {
            self.unfinished = Some(Unfinished::new(share, used));
        }
    }

    /// Removes the episodes for which `reason` returns a reason, with it.
    pub(super) fn remove(
        &mut self,
        reason: impl Fn(&Episode) -> Option<CancelReason>,
    ) -> Vec<(Episode, CancelReason)> {
        let mut removed = Vec::new();
        for episode in std::mem::take(&mut self.waiting) {
            match reason(&episode) {
                Some(reason) => removed.push((episode, reason)),
                None => self.waiting.push(episode),
            }
        }
        for due in std::mem::take(&mut self.due) {
            match reason(&due.episode) {
                Some(reason) => removed.push((due.episode, reason)),
                None => self.due.push_back(due),
            }
        }
        removed
    }

    /// Returns the iteration that a stop cut short.
    pub(super) fn unfinished(&self) -> Option<&Unfinished> {
        self.unfinished.as_ref()
    }

    /// Continues an iteration of a snapshot at the next call.
    pub(super) fn continue_iteration(&mut self, unfinished: Option<Unfinished>) {
        self.unfinished = unfinished;
    }
}
