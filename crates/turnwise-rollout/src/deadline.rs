use std::time::Duration;

use tokio::time::{Instant, timeout_at};

/// A deadline on the monotonic clock.
///
/// Deadlines form a tree: a part has the smaller of its own limit and the time that its parent has left, so that no
/// part outlives the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// `None` for never.
    at: Option<Instant>,
}

impl Deadline {
    /// Returns a deadline that never passes.
    #[must_use]
    pub fn never() -> Self {
        Self { at: None }
    }

    /// Returns a deadline `limit` from now; never, if the clock does not reach that far.
    #[must_use]
    pub fn after(limit: Duration) -> Self {
        Self { at: Instant::now().checked_add(limit) }
    }

    /// Returns the deadline of a part with its own limit: the earlier of that limit, from now, and this deadline.
    #[must_use]
    pub fn child(self, limit: Duration) -> Self {
        let own = Self::after(limit);
        match (self.at, own.at) {
            (Some(parent), Some(child)) => Self { at: Some(parent.min(child)) },
            (Some(_), None) => self,
            (None, _) => own,
        }
    }

    /// Returns the time left: 0 if the deadline has passed, and [`Duration::MAX`] if it never passes.
    #[must_use]
    pub fn remaining(self) -> Duration {
        self.at.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()))
    }

    /// Returns whether the deadline has passed.
    #[must_use]
    pub fn is_over(self) -> bool {
        self.remaining().is_zero()
    }

    /// Returns the future's output, or `None` if the deadline passes first, in which case the future is dropped.
    pub async fn bound<T>(self, future: impl Future<Output = T>) -> Option<T> {
        match self.at {
            Some(at) => timeout_at(at, future).await.ok(),
            None => Some(future.await),
        }
    }
}
