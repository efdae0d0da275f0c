use turnwise_environment::TaskSet;

use super::{Episode, EpisodeSnapshot, RestoreError};
use crate::AgentFactory;

/// What a fork of an episode has for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    /// Its place in the group.
    pub member: u32,
    /// What its tokens are drawn with from here on.
    pub sampling_seed: u64,
}

impl Episode {
    /// Episodes that all go on from here, each with its own sampling seed; this one is as it was.
    ///
    /// The tokens drawn so far are in all of them, and train in the first only: in the others they are masked as a shared
    /// prefix. Results of tools are shared too; no call is made again.
    ///
    /// # Errors
    /// When the environment cannot be brought to this state twice.
    pub fn fork(
        &self,
        forks: &[Fork],
        tasks: &dyn TaskSet,
        factory: &dyn AgentFactory,
    ) -> Result<Vec<Self>, ForkError> {
        let snapshot = self.snapshot().ok_or(ForkError::NoSnapshot)?;
        let n_drawn = self.n_drawn();
        let copy = |(place, fork): (usize, &Fork)| {
            let copy = forked(snapshot.clone(), *fork, if place == 0 { 0 } else { n_drawn });
            let mut episode = Self::restore(copy, tasks, factory)?;
            episode.world.use_threads(self.world.threads());
            Ok(match self.world.ledger().store() {
                Some(store) => episode.with_ledger(store),
                None => episode,
            })
        };
        forks.iter().enumerate().map(copy).collect()
    }
}

fn forked(mut snapshot: EpisodeSnapshot, fork: Fork, n_shared: usize) -> EpisodeSnapshot {
    let state = &mut snapshot.state;
    state.forked_from = Some(state.seed_of_agent());
    state.identity.member = fork.member;
    state.identity.sampling_seed = fork.sampling_seed;
    // A fork of a fork: what was another's to train stays so.
    state.n_shared = state.n_shared.max(n_shared);
    snapshot
}

/// An episode that cannot be forked.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// Its environment starts anew rather than going on.
    #[error("fork an episode whose environment takes no snapshots and is not replayed")]
    NoSnapshot,
    /// Its own snapshot is refused.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}
