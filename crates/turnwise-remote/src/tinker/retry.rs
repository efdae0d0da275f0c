//! When a request is tried again.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::fault::ServerFault;

/// The attempts at one request.
#[derive(Debug)]
pub(super) struct Retry {
    /// When the attempts end, after the first that failed.
    end: Option<Instant>,
    max_wait: Duration,
    next_pause: Duration,
}

/// The first pause.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause that is not asked for.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

impl Retry {
    pub(super) fn new(max_wait: Duration) -> Self {
        Self { end: None, max_wait, next_pause: FIRST_PAUSE }
    }

    /// Waits until the next attempt, or returns the fault if no attempt can help.
    pub(super) async fn after(&mut self, fault: ServerFault) -> Result<(), ServerFault> {
        let asked = match &fault {
            ServerFault::Busy { wait, .. } => *wait,
            ServerFault::Unreachable(_) | ServerFault::Broke(_) => None,
            ServerFault::Refused { .. } | ServerFault::Wrong(_) => return Err(fault),
        };
        let now = Instant::now();
        let end = *self.end.get_or_insert(now + self.max_wait);
        let next = now + asked.unwrap_or(self.next_pause);
        if next > end {
            return Err(fault);
        }
        tracing::debug!(%fault, "trying again");
        self.next_pause = (self.next_pause * 2).min(LONGEST_PAUSE);
        sleep_until(next).await;
        Ok(())
    }

    /// Forgets earlier attempts, because the server answered.
    pub(super) fn succeeded(&mut self) {
        *self = Self::new(self.max_wait);
    }
}
