use turnwise_environment::TaskSet;

use super::guard::caught;
use super::seats::sampling_seed;
use super::{Episode, EpisodeSnapshot, RestoreError};
use crate::{Agent, AgentFactory};

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
        let copy = |(place, fork): (usize, &Fork)| {
            let copy = self.forked(snapshot.clone(), *fork, place == 0);
            let mut episode = Self::restore_against(copy, tasks, factory, &self.opponent)?;
            episode.world.use_threads(self.world.threads());
            Ok(match self.world.ledger().store() {
                Some(store) => episode.with_ledger(store),
                None => episode,
            })
        };
        forks.iter().enumerate().map(copy).collect()
    }

    /// Returns the snapshot of a fork. The tokens so far train in the fork only if `trains`.
    fn forked(&self, mut snapshot: EpisodeSnapshot, fork: Fork, trains: bool) -> EpisodeSnapshot {
        let state = &mut snapshot.state;
        state.identity.member = fork.member;
        state.identity.sampling_seed = fork.sampling_seed;
        for (index, (seat, occupant)) in state.seats.iter_mut().zip(&self.seats).enumerate() {
            let n_drawn = |agent: &dyn Agent| caught(|| agent.n_drawn()).unwrap_or(0);
            let n_shared = if trains { 0 } else { occupant.agent().map_or(0, n_drawn) };
            seat.forked_from = Some(seat.seed_of_agent());
            seat.sampling_seed = sampling_seed(fork.sampling_seed, index);
            // In a fork of a fork, tokens that another episode trains stay masked.
            seat.n_shared = seat.n_shared.max(n_shared);
        }
        snapshot
    }
}

/// The reason why an episode cannot be forked.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// The environment restarts instead of continuing.
    #[error("cannot fork the episode: its environment takes no snapshots and is not replayed")]
    NoSnapshot,
    /// The episode's own snapshot was refused.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}
