//! Episodes by the id that a client sends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use crate::key::SessionKey;

/// The open episodes of a server.
#[derive(Debug)]
pub(super) struct HostedSessions<T> {
    open: Mutex<HashMap<SessionKey, HostedSession<T>>>,
    most: usize,
    timeout: Duration,
}

#[derive(Debug)]
struct HostedSession<T> {
    heard: Instant,
    episode: Slot<T>,
}

/// The place of a session's episode, which a client fills once it has chosen a task. Calls wait for each other.
pub(super) type Slot<T> = Arc<AsyncMutex<Option<T>>>;

impl<T> HostedSessions<T> {
    pub(super) fn new(most: usize, timeout: Duration) -> Self {
        Self { open: Mutex::default(), most, timeout }
    }

    /// Opens a session, unless there are too many.
    pub(super) fn open(&self) -> Option<SessionKey> {
        let mut open = self.reaped();
        if open.len() >= self.most {
            return None;
        }
        let key = SessionKey::random();
        open.insert(key.clone(), HostedSession { heard: Instant::now(), episode: Slot::default() });
        Some(key)
    }

    /// Returns the place of a session's episode, and keeps the session open.
    pub(super) fn get(&self, key: &SessionKey) -> Option<Slot<T>> {
        let mut open = self.reaped();
        let session = open.get_mut(key)?;
        session.heard = Instant::now();
        Some(session.episode.clone())
    }

    /// Closes a session; returns whether there was one.
    pub(super) fn close(&self, key: &SessionKey) -> bool {
        self.reaped().remove(key).is_some()
    }

    /// Closes the sessions of which nothing is heard, but for those in the middle of a call.
    fn reaped(&self) -> MutexGuard<'_, HashMap<SessionKey, HostedSession<T>>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, session| {
            session.heard.elapsed() < self.timeout || Arc::strong_count(&session.episode) > 1
        });
        open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn sessions_are_closed_when_nothing_is_heard_of_them() {
        let sessions = HostedSessions::<()>::new(2, Duration::from_secs(10));
        let (kept, lost) = (sessions.open().unwrap(), sessions.open().unwrap());
        assert!(sessions.open().is_none());
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(sessions.get(&kept).is_some());
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(sessions.get(&lost).is_none());
        assert!(sessions.get(&kept).is_some() && sessions.open().is_some());
        assert!(sessions.close(&kept) && !sessions.close(&kept));
    }
}
