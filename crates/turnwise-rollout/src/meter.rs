use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The progress of a long piece of work, readable while the work runs. Clones share one reading.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<Mutex<Option<Reading>>>);

/// The state of a [`Meter`] at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// The unit, as a plural noun: `episodes`, `micro-batches`, [`Meter::BYTES`].
    pub unit: &'static str,
    /// The number of units done.
    pub done: u64,
    /// The number of units in total.
    pub total: u64,
    /// The time at which the work began.
    pub started: Instant,
}

impl Meter {
    /// The unit of work measured in bytes.
    pub const BYTES: &'static str = "bytes";

    /// Begins work on `total` units.
    pub fn begin(&self, unit: &'static str, total: u64) {
        self.set(Some(Reading { unit, done: 0, total, started: Instant::now() }));
    }

    /// Records that `n` more units are done.
    pub fn advance(&self, n: u64) {
        if let Some(reading) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            reading.done = reading.done.saturating_add(n).min(reading.total);
        }
    }

    /// Ends the work.
    pub fn end(&self) {
        self.set(None);
    }

    /// Returns the progress; `None` if no work runs.
    #[must_use]
    pub fn read(&self) -> Option<Reading> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, reading: Option<Reading>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = reading;
    }
}

impl Reading {
    /// Estimates the remaining time at the average speed so far; `None` before the first unit is done.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        let share = (self.total - self.done) as f64 / self.done as f64;
        Duration::try_from_secs_f64(self.started.elapsed().as_secs_f64() * share)
            .ok()
            .filter(|_| self.done > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rest_takes_as_long_as_what_was_done() {
        let meter = Meter::default();
        assert_eq!(meter.read(), None);
        meter.clone().begin("episodes", 4);
        let read = || meter.read().expect("it has begun");
        assert_eq!(read().left(), None);
        tokio::time::advance(Duration::from_secs(3)).await;
        meter.advance(1);
        assert_eq!((read().done, read().left()), (1, Some(Duration::from_secs(9))));
        meter.advance(9);
        assert_eq!((read().done, read().left()), (4, Some(Duration::ZERO)));
        meter.end();
        assert_eq!(meter.read(), None);
    }
}
