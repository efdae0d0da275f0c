use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;
use turnwise_trajectory::{GroupId, Identity, PolicyVersion};

use crate::{
    Allowance, Episode, EpisodeRunner, Policy, Progress, SessionId, StopHandle, StopSignal,
};

/// A member's place in its group, equal for all attempts of the member.
pub(super) type Place = (GroupId, u32);

/// Returns the place of an episode.
pub(super) fn place(identity: &Identity) -> Place {
    (identity.group, identity.member)
}

/// An episode that is due to be advanced.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) episode: Episode,
    /// The delay before it starts.
    pub(super) delay: Duration,
    /// The number of the iteration's tokens that earlier attempts have sampled.
    pub(super) used: u64,
}

/// The result of a running episode.
#[derive(Debug)]
pub(super) struct Returned {
    pub(super) place: Place,
    pub(super) n_drawn_before: usize,
    /// The number of the iteration's tokens that earlier attempts had sampled.
    pub(super) used_before: u64,
    pub(super) progress: Progress,
}

/// The episodes that are being advanced, each in a task of its own. Dropping this value drops them all.
#[derive(Default)]
pub(super) struct Running {
    tasks: JoinSet<Returned>,
    places: BTreeMap<Place, Taken>,
}

struct Taken {
    stop: StopHandle,
    /// A lower bound of the versions of the episode's tokens.
    launched_at: PolicyVersion,
    /// The engine sessions of its seats, each with its policy if that is not the trained one.
    sessions: Vec<(Option<Arc<dyn Policy>>, SessionId)>,
}

impl Running {
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn launch(
        &mut self,
        due: Due,
        (runner, policy): (&Arc<dyn EpisodeRunner>, &Arc<dyn Policy>),
        tokens: u64,
        stop: &StopSignal,
    ) {
        let Due { episode, delay, used } = due;
        let identity = episode.identity();
        let place = place(identity);
        let (handle, stop) = stop.child();
        let sessions = episode.sessions();
        let now = policy.version();
        let launched_at = episode.oldest_version().map_or(now, |oldest| oldest.min(now));
        let taken = Taken { stop: handle, launched_at, sessions };
        let before = self.places.insert(place, taken);
        assert!(before.is_none(), "a member runs once at a time");
        let engine = (runner.clone(), policy.clone());
        let allowance = Allowance { tokens: tokens.saturating_sub(used), stop };
        let advancing = advance(place, episode, delay, engine, allowance);
        self.tasks.spawn(async move { Returned { used_before: used, ..advancing.await } });
    }

    /// Iterates over the engine sessions of the running episodes.
    pub(super) fn sessions(
        &self,
    ) -> impl Iterator<Item = (Option<Arc<dyn Policy>>, SessionId)> + '_ {
        self.places.values().flat_map(|taken| taken.sessions.iter().cloned())
    }

    /// Returns the next result; `None` if no episode runs. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<Returned> {
        let returned = match self.tasks.join_next().await? {
            Ok(returned) => returned,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        self.places.remove(&returned.place);
        Some(returned)
    }

    pub(super) fn stop_all(&self) {
        self.places.values().for_each(|taken| taken.stop.stop());
    }

    /// Stops the episodes that may have sampled tokens older than `oldest`.
    pub(super) fn stop_launched_before(&self, oldest: PolicyVersion) {
        let launched_before = self.places.values().filter(|taken| taken.launched_at < oldest);
        launched_before.for_each(|taken| taken.stop.stop());
    }

    /// Stops the members of a group.
    pub(super) fn stop_group(&self, group: GroupId) {
        let members = self.places.range((group, 0)..=(group, u32::MAX));
        members.for_each(|(_, taken)| taken.stop.stop());
    }
}

async fn advance(
    place: Place,
    episode: Episode,
    delay: Duration,
    (runner, policy): (Arc<dyn EpisodeRunner>, Arc<dyn Policy>),
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
    // A stop before the start leaves the episode unchanged, without a suspension that counts.
    let progress = if allowance.stop.requested() {
        Progress::Suspended(episode)
    } else {
        runner.advance(episode, &policy, &allowance).await
    };
    Returned { place, n_drawn_before, used_before: 0, progress }
}
