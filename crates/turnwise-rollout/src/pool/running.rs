use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;
use turnwise_trajectory::{GroupId, PolicyVersion};

use crate::{Allowance, Episode, Policy, Progress, StopHandle, StopSignal};

/// A member's place in its group: the same for all its attempts.
pub(super) type Seat = (GroupId, u32);

/// An episode that is to be advanced.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) episode: Episode,
    /// How long to wait first.
    pub(super) delay: Duration,
    /// What attempts before it have drawn of the iteration's tokens.
    pub(super) used: u64,
}

/// What came back of an episode.
#[derive(Debug)]
pub(super) struct Returned {
    pub(super) seat: Seat,
    pub(super) n_drawn_before: usize,
    /// What attempts before it had drawn of the iteration's tokens.
    pub(super) used_before: u64,
    pub(super) progress: Progress,
}

/// Episodes that are being advanced, each in a task of its own. Dropping this drops them all.
#[derive(Debug, Default)]
pub(super) struct Running {
    tasks: JoinSet<Returned>,
    seats: BTreeMap<Seat, Taken>,
}

#[derive(Debug)]
struct Taken {
    stop: StopHandle,
    /// No token that it has or draws now is older.
    launched_at: PolicyVersion,
    /// At the engine.
    session: u64,
}

impl Running {
    pub(super) fn len(&self) -> usize {
        self.seats.len()
    }

    pub(super) fn launch(
        &mut self,
        due: Due,
        policy: &Arc<dyn Policy>,
        tokens: u64,
        stop: &StopSignal,
    ) {
        let Due { episode, delay, used } = due;
        let identity = episode.identity();
        let seat = super::seat(identity);
        let (handle, stop) = stop.child();
        let session = identity.sampling_seed;
        let now = policy.version();
        let launched_at = episode.oldest_version().map_or(now, |oldest| oldest.min(now));
        let taken = Taken { stop: handle, launched_at, session };
        let before = self.seats.insert(seat, taken);
        assert!(before.is_none(), "a member runs once at a time");
        let policy = policy.clone();
        let allowance = Allowance { tokens: tokens.saturating_sub(used), stop };
        let advancing = advance(seat, episode, delay, policy, allowance);
        self.tasks.spawn(async move { Returned { used_before: used, ..advancing.await } });
    }

    /// The engine's sessions of those that run.
    pub(super) fn sessions(&self) -> impl Iterator<Item = u64> + '_ {
        self.seats.values().map(|taken| taken.session)
    }

    /// The next to come back; `None` when nothing runs. Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Option<Returned> {
        let returned = match self.tasks.join_next().await? {
            Ok(returned) => returned,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        self.seats.remove(&returned.seat);
        Some(returned)
    }

    pub(super) fn stop_all(&self) {
        self.seats.values().for_each(|taken| taken.stop.stop());
    }

    /// Stops those that may have drawn tokens older than `oldest`.
    pub(super) fn stop_launched_before(&self, oldest: PolicyVersion) {
        let launched_before = self.seats.values().filter(|taken| taken.launched_at < oldest);
        launched_before.for_each(|taken| taken.stop.stop());
    }

    /// Stops the members of a group.
    pub(super) fn stop_group(&self, group: GroupId) {
        let members = self.seats.range((group, 0)..=(group, u32::MAX));
        members.for_each(|(_, taken)| taken.stop.stop());
    }
}

async fn advance(
    seat: Seat,
    episode: Episode,
    delay: Duration,
    policy: Arc<dyn Policy>,
    allowance: Allowance,
) -> Returned {
    let n_drawn_before = episode.n_drawn();
    if !delay.is_zero() {
        tokio::select! {
            biased;
            () = allowance.stop.wait() => {}
            () = sleep(delay) => {}
        }
    }
    // What has been asked to stop before it began has not begun.
    let progress = if allowance.stop.requested() {
        Progress::Suspended(episode)
    } else {
        episode.advance(&*policy, &allowance).await
    };
    Returned { seat, n_drawn_before, used_before: 0, progress }
}
