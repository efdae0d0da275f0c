use turnwise_trajectory::{InfraReason, Outcome};

use super::digest::digest;
use super::guard::infra;
use super::state::{Exchange, Script};
use super::{Episode, excerpt};
use crate::Deadline;

impl Episode {
    /// Brings a fresh environment to where the episode stands: resets it with the same seed and does everything again.
    ///
    /// What it answers must be what it answered before; calls of tools are answered from the ledger.
    pub(super) async fn replay(&mut self, deadline: Deadline) -> Result<(), Outcome> {
        let seed = self.state.identity.environment_seed;
        let limit = self.limits.environment_timeout();
        let mut observation = self.world.reset(seed, deadline, limit).await?;
        excerpt::cut(&mut observation, self.limits.max_observation_bytes);
        let Script { opening, exchanges, .. } = self.state.script.clone();
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
    let message = format!("{what} is not what it was when the episode was first played");
    Err(infra(InfraReason::Snapshot, message))
}
