//! The sessions of a server.

use std::sync::Arc;

use super::super::sessions::{HostedSessions, Slot};
use super::fault::EpisodeFault;
use super::fault::FaultCode::{Capacity, Session};
use super::play::{Game, Play};
use crate::key::SessionKey;

/// A game and the sessions that play it; a handle.
#[derive(Clone)]
pub(super) struct HostedGames {
    pub(super) game: Arc<Game>,
    pub(super) sessions: Arc<HostedSessions<Play>>,
}

impl HostedGames {
    /// Opens a session for a WebSocket, or finds the one that it names.
    pub(super) fn slot(
        &self,
        named: Option<&str>,
    ) -> Result<(SessionKey, Slot<Play>), EpisodeFault> {
        if let Some(id) = named {
            let key = SessionKey::sent(id);
            let slot = self.sessions.get(&key);
            let slot = slot
                .ok_or_else(|| EpisodeFault::new(Session, format!("Unknown session_id: {id}")))?;
            return Ok((key, slot));
        }
        let most = self.game.settings.max_sessions;
        let full = format!(
            "Server at capacity: {most}/{most} sessions active. Cannot accept new connections."
        );
        let key = self.sessions.open().ok_or_else(|| EpisodeFault::new(Capacity, full))?;
        let slot = self.sessions.get(&key).unwrap_or_default();
        Ok((key, slot))
    }
}
