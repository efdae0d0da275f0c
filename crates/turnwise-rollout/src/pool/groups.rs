//! The groups with unfinished members, and the account of every episode.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use turnwise_environment::Rubric;
use turnwise_trajectory::{CancelReason, GroupId, Outcome, Trajectory};

use super::{Iteration, Ledger, PoolSettings};
use crate::Group;
use crate::grading::{self, Graded};
use crate::group::has_reward;

/// The groups with unfinished members.
#[derive(Default)]
pub(super) struct OpenGroups {
    /// The finished members of each group.
    finished: BTreeMap<GroupId, Vec<Trajectory>>,
    /// Complete groups that are being graded.
    grading: FuturesUnordered<BoxFuture<'static, Graded>>,
    /// Groups with too few members left, whose remaining episodes are cancelled.
    doomed: BTreeSet<GroupId>,
    /// The number of groups that were dropped whole.
    n_lost: u64,
    ledger: Ledger,
}

/// The groups as data.
pub(super) struct GroupsSnapshot {
    pub(super) finished: BTreeMap<GroupId, Vec<Trajectory>>,
    pub(super) doomed: BTreeSet<GroupId>,
    pub(super) n_lost: u64,
    pub(super) ledger: Ledger,
}

impl OpenGroups {
    /// Opens a group of `size` members.
    ///
    /// # Panics
    /// Panics if the group is already open.
    pub(super) fn open(&mut self, id: GroupId, size: usize) {
        let fresh = self.finished.insert(id, Vec::new()).is_none();
        assert!(fresh, "group {} is open already", id.0);
        self.ledger.dispatched += size as u64;
    }

    /// Returns the number of open groups; those that are being graded do not count.
    pub(super) fn len(&self) -> usize {
        self.finished.len()
    }

    pub(super) fn n_grading(&self) -> usize {
        self.grading.len()
    }

    pub(super) fn n_lost(&self) -> u64 {
        self.n_lost
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub(super) fn is_doomed(&self, id: GroupId) -> bool {
        self.doomed.contains(&id)
    }

    /// Returns the number of finished episodes of groups of `size` that are not delivered yet.
    pub(super) fn n_gathered(&self, size: usize) -> usize {
        self.finished.values().map(Vec::len).sum::<usize>() + self.grading.len() * size
    }

    /// Adds a final attempt to its group, and grades the group when it is complete. Returns the group's id if it is no
    /// longer worth continuing, the first time that this is so.
    pub(super) fn file(
        &mut self,
        trajectory: Trajectory,
        settings: &PoolSettings,
        rubric: Option<&Arc<dyn Rubric>>,
    ) -> Option<GroupId> {
        let id = trajectory.identity.group;
        let finished = self.finished.get_mut(&id).expect("an episode runs while its group is open");
        finished.push(trajectory);
        if finished.len() < settings.group_size {
            let is_doomed = is_doomed(finished, settings) && self.doomed.insert(id);
            return is_doomed.then_some(id);
        }
        let mut members = self.finished.remove(&id).expect("it was just found");
        self.doomed.remove(&id);
        members.sort_unstable_by_key(|member| member.identity.member);
        let (rubric, limit) = (rubric.cloned(), settings.rubric_timeout());
        self.grading.push(Box::pin(grading::grade(rubric, limit, Group { id, members })));
        None
    }

    /// Returns the next graded group; `None` if none is being graded. Dropping the future loses nothing.
    pub(super) async fn next_graded(&mut self) -> Option<Graded> {
        self.grading.next().await
    }

    /// Counts a graded group, and delivers it if enough members are scored.
    pub(super) fn deliver(&mut self, group: Group, min_size: usize, news: &mut Iteration) {
        let viable = group.n_scored() >= min_size;
        for member in &group.members {
            let reason = match (viable, has_reward(member)) {
                (true, true) => {
                    self.ledger.delivered += 1;
                    continue;
                }
                (false, true) => "group_dropped".to_owned(),
                (_, false) if member.outcome.is_scored() => NO_TURN.to_owned(),
                (_, false) => member.outcome.label(),
            };
            *self.ledger.dropped.entry(reason.clone()).or_default() += 1;
            *news.dropped.entry(reason).or_default() += 1;
        }
        if viable {
            news.groups.push(group);
        } else {
            self.n_lost += 1;
        }
    }

    /// Returns the groups as data; groups that are being graded are not in it.
    pub(super) fn snapshot(&self) -> GroupsSnapshot {
        GroupsSnapshot {
            finished: self.finished.clone(),
            doomed: self.doomed.clone(),
            n_lost: self.n_lost,
            ledger: self.ledger.clone(),
        }
    }

    pub(super) fn restore(snapshot: GroupsSnapshot) -> Self {
        let GroupsSnapshot { finished, doomed, n_lost, ledger } = snapshot;
        Self { finished, grading: FuturesUnordered::new(), doomed, n_lost, ledger }
    }
}

/// The reason of an episode that ended before the trained policy's first turn, in a [`Ledger`].
pub const NO_TURN: &str = "no_turn";

/// Returns whether staleness has left too few members. Faults never do, because each member is retried on its own.
fn is_doomed(finished: &[Trajectory], settings: &PoolSettings) -> bool {
    let is_lost =
        |member: &&Trajectory| matches!(member.outcome, Outcome::Cancelled(CancelReason::Stale));
    let n_lost = finished.iter().filter(is_lost).count();
    settings.group_size - n_lost < settings.min_group_size
}

impl fmt::Debug for OpenGroups {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("OpenGroups").field("ledger", &self.ledger).finish_non_exhaustive()
    }
}
