use turnwise_trajectory::{InfraReason, Outcome};

use super::digest::digest;
use super::guard::infra;
use super::state::{Exchange, ReplayScript};
use super::{Episode, excerpt};
use crate::Deadline;

impl Episode {
    /// Brings a fresh environment to the episode's current turn: resets it with the same seed and repeats every action.
    ///
    /// The environment's answers must equal those of the first run; tool calls are answered from the ledger.
    pub(super) async fn replay(&mut self, deadline: Deadline) -> Result<(), Outcome> {
        let seed = self.state.identity.environment_seed;
        let limit = self.limits.environment_timeout();
        let mut observation = self.world.reset(seed, deadline, limit).await?;
        excerpt::cut(&mut observation, self.limits.max_observation_bytes);
        let ReplayScript { opening, exchanges, .. } = self.state.script.clone();
        same(&opening, &digest(&observation), "the first observation")?;
        for Exchange { turn, action, step: before } in exchanges {
            self.world.ledger().begin_turn(turn);
            let step = self.step_world(action, deadline).await?;
            same(&before, &digest(&step), &format!("the answer in turn {}", turn + 1))?;
        }
        self.is_behind = false;
        Ok(())
    }
}

fn same(before: &str, now: &str, what: &str) -> Result<(), Outcome> {
    if before == now {
        return Ok(());
    }
    let message = format!("{what} differs from the one in the first run of the episode");
    Err(infra(InfraReason::Snapshot, message))
}
