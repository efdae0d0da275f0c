use turnwise_environment::TaskSet;

use super::{Episode, EpisodeSnapshot, RestoreError};
use crate::AgentFactory;

/// The identity of a fork of an episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The fork's index in the group.
    pub member: u32,
    /// The seed of the tokens sampled after the fork.
    pub sampling_seed: u64,
}

impl Episode {
    /// Forks the episode: each fork continues from here with its own sampling seed. The episode itself is unchanged.
    ///
    /// The tokens sampled so far are in all forks, and train in the first only: in the others they are masked as a
    /// shared prefix. Tool results are shared too; no call is made again.
    ///
    /// # Errors
    /// If the environment cannot be brought to this state twice.
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
    // In a fork of a fork, tokens that another episode trains stay masked.
    state.n_shared = state.n_shared.max(n_shared);
    snapshot
}

/// The reason why an episode cannot be forked.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// The environment restarts instead of continuing.
    #[error("fork the episode: its environment takes no snapshots and is not replayed")]
    NoSnapshot,
    /// The episode's own snapshot was refused.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}
