use std::time::Duration;

use tokio::time::Instant;

/// The number of groups that asynchronous rollouts keep open or ready for the trainer: as few as keep the trainer busy.
///
/// Staleness admits η + 1 batches, but a batch that waits in a queue only ages. The lead starts with one batch; it
/// grows if the trainer has to wait, and shrinks if groups are left over.
#[derive(Debug)]
pub(crate) struct Lead {
    batch: usize,
    /// The number of groups beyond one batch.
    ahead: usize,
    max_ahead: usize,
    /// The time at which the trainer took its last batch.
    last: Option<Instant>,
    has_waited: bool,
}

/// The share of a step that counts as waiting; a smaller share is polling time.
const IDLE_SHARE: f64 = 0.1;

impl Lead {
    pub(crate) fn new(batch: usize, max_staleness: u32) -> Self {
        let max_ahead = batch.saturating_mul(max_staleness as usize);
        Self { batch, ahead: 0, max_ahead, last: None, has_waited: false }
    }

    /// Returns the number of groups to keep open or ready.
    pub(crate) fn groups(&self) -> usize {
        self.batch + self.ahead
    }

    /// Records that the trainer took its batch after waiting for `idle`.
    pub(crate) fn waited(&mut self, idle: Duration, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            let step = now.duration_since(last).as_secs_f64();
            self.has_waited = idle.as_secs_f64() > IDLE_SHARE * step;
        }
        if self.has_waited {
            self.ahead = (self.ahead + self.batch.div_ceil(4)).min(self.max_ahead);
        }
    }

    /// Records that `n` further groups were ready when the trainer took its batch.
    pub(crate) fn left_over(&mut self, n: usize) {
        if !std::mem::take(&mut self.has_waited) {
            self.ahead = self.ahead.saturating_sub(n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Simulates a trainer whose steps take a second, of which it waits the share `idle`.
    fn after(lead: &mut Lead, steps: usize, idle: f64, left_over: usize) {
        for _ in 0..steps {
            let now = lead.last.unwrap_or_else(Instant::now) + Duration::from_secs(1);
            lead.waited(Duration::from_secs_f64(idle), now);
            lead.left_over(left_over);
        }
    }

    #[test]
    fn who_waits_gets_more_up_to_what_staleness_admits() {
        let mut lead = Lead::new(8, 2);
        assert_eq!(lead.groups(), 8);
        after(&mut lead, 3, 0.5, 0);
        assert_eq!(lead.groups(), 12, "the first step has nothing to compare with");
        after(&mut lead, 100, 0.5, 0);
        assert_eq!(lead.groups(), 24);
    }

    #[test]
    fn who_finds_groups_left_over_gets_fewer_but_never_less_than_a_batch() {
        let mut lead = Lead::new(8, 2);
        after(&mut lead, 100, 0.5, 0);
        after(&mut lead, 1, 0.0, 3);
        assert_eq!(lead.groups(), 21);
        after(&mut lead, 100, 0.0, 3);
        assert_eq!(lead.groups(), 8);
    }
}
