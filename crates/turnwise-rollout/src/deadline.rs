use std::time::Duration;

use tokio::time::{Instant, timeout_at};

/// When something must be over, on the monotonic clock.
///
/// Deadlines form a tree: what is done on behalf of something has the smaller of its own limit and what the other has left,
/// so that no part outlives the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// `None` is never.
    at: Option<Instant>,
}

impl Deadline {
    /// No deadline at all.
    #[must_use]
    pub fn never() -> Self {
        Self { at: None }
    }

    /// So much time from now; never, where no clock reaches that far.
    #[must_use]
    pub fn after(limit: Duration) -> Self {
        Self { at: Instant::now().checked_add(limit) }
    }

    /// The deadline of a part with a limit of its own: the earlier of that limit, from now, and this deadline.
    #[must_use]
    pub fn child(self, limit: Duration) -> Self {
        let own = Self::after(limit);
        match (self.at, own.at) {
            (Some(parent), Some(child)) => Self { at: Some(parent.min(child)) },
            (Some(_), None) => self,
            (None, _) => own,
        }
    }

    /// How much time is left: 0 when it is over, and [`Duration::MAX`] when it never will be.
    #[must_use]
    pub fn remaining(self) -> Duration {
        self.at.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()))
    }

    /// Whether it has passed.
    #[must_use]
    pub fn is_over(self) -> bool {
        self.remaining().is_zero()
    }

    /// What the future comes to, or `None`, and the future dropped, when the deadline passes first.
    pub async fn bound<T>(self, future: impl Future<Output = T>) -> Option<T> {
        match self.at {
            Some(at) => timeout_at(at, future).await.ok(),
            None => Some(future.await),
        }
    }
}
