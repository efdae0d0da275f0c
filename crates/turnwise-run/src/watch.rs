//! Waiting for long work, with its progress, its remaining time, and what a stop waits for.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use turnwise_rollout::{Meter, Reading, StopSignal};

use crate::Observer;
use crate::text::clock;

/// How often the progress is shown.
const TICK: Duration = Duration::from_millis(250);
/// Work that ends sooner is not shown.
const PATIENCE: Duration = Duration::from_secs(2);

/// The work that is waited for.
#[derive(Debug)]
pub struct Watched<'a> {
    /// A name in a few words, as in `step 12`.
    pub what: &'a str,
    /// The meters of the work's progress; empty if nothing counts it.
    pub meters: &'a [Meter],
}

impl Watched<'_> {
    /// Describes the progress, as in `step 12: 3/8 micro-batches, 0:40 left`.
    fn describe(&self, started: Instant) -> String {
        let parts: Vec<String> = self
            .meters
            .iter()
            .filter_map(Meter::read)
            .map(|reading| {
                let left =
                    reading.left().map(|left| format!(", {} left", clock(left.as_secs_f64())));
                let left = left.unwrap_or_default();
                let Reading { done, total, unit, .. } = reading;
                if unit == Meter::BYTES {
                    return format!("{}/{} MB{left}", done / 1_000_000, total.div_ceil(1_000_000));
                }
                format!("{done}/{total} {unit}{left}")
            })
            .collect();
        if parts.is_empty() {
            return format!("{}: {}", self.what, clock(started.elapsed().as_secs_f64()));
        }
        format!("{}: {}", self.what, parts.join(" and "))
    }
}

/// Waits for `work` and meanwhile reports its progress to the observer. If a stop is requested, says at once what it
/// waits for.
pub async fn watch<T>(
    observer: &mut dyn Observer,
    watched: Watched<'_>,
    stop: &StopSignal,
    work: impl Future<Output = T>,
) -> T {
    let started = Instant::now();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_told = stop.requested();
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            result = &mut work => {
                observer.idle();
                return result;
            }
            () = stop.wait(), if !is_told => {
                is_told = true;
                let now = watched.describe(started);
                observer.note(&format!("stopping, when this is done: {now}. A second Ctrl-C ends at once"));
            }
            _ = ticks.tick() => {
                if started.elapsed() >= PATIENCE {
                    observer.progress(&watched.describe(started), started.elapsed());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use turnwise_rollout::stop_signal;

    use super::*;

    /// Records the lines that it is told.
    #[derive(Default)]
    struct Told(Vec<String>);

    impl Observer for Told {
        fn progress(&mut self, line: &str, _elapsed: Duration) {
            self.0.push(line.to_owned());
        }

        fn note(&mut self, text: &str) {
            self.0.push(text.to_owned());
        }
    }

    /// Returns what is told during `n` pieces of work of three seconds each, with a stop after `stop_after` of them.
    async fn told(n: u64, stop_after: Option<u64>) -> Vec<String> {
        let (mut observer, meter) = (Told::default(), Meter::default());
        let (handle, stop) = stop_signal();
        let work = async {
            meter.begin("episodes", n);
            for done in 0..n {
                if stop_after == Some(done) {
                    handle.stop();
                }
                tokio::time::sleep(Duration::from_secs(3)).await;
                meter.advance(1);
            }
        };
        let watched = Watched { what: "evaluating", meters: std::slice::from_ref(&meter) };
        watch(&mut observer, watched, &stop, work).await;
        observer.0
    }

    /// Field 16
    #[tokio::test(start_paused = true)]
    async fn what_takes_long_shows_how_far_it_is_and_what_a_stop_waits_for() {
        let lines = told(4, None).await;
        assert_eq!(lines[0], "evaluating: 0/4 episodes");
        assert!(lines.contains(&"evaluating: 1/4 episodes, 0:09 left".to_owned()), "{lines:?}");
        let lines = told(4, Some(2)).await;
        let stop = "stopping, when this is done: evaluating: 2/4 episodes, 0:06 left. A second Ctrl-C ends at once";
        assert!(lines.contains(&stop.to_owned()), "{lines:?}");
    }

    /// Field 16
    #[tokio::test(start_paused = true)]
    async fn bytes_are_shown_as_megabytes() {
        let meter = Meter::default();
        meter.begin(Meter::BYTES, 543_000_001);
        let started = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        meter.advance(181_000_000);
        let watched = Watched { what: "loading", meters: std::slice::from_ref(&meter) };
        assert_eq!(watched.describe(started), "loading: 181/544 MB, 0:02 left");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_soon_over_says_nothing() {
        let mut observer = Told::default();
        let watched = Watched { what: "saving", meters: &[] };
        let work = tokio::time::sleep(Duration::from_millis(1500));
        watch(&mut observer, watched, &StopSignal::never(), work).await;
        assert!(observer.0.is_empty());
    }
}
