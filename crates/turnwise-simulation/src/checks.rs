//! The checks of every step.

use std::collections::BTreeSet;
use std::sync::Arc;
use turnwise_rollout::SessionId;

use turnwise_objective::{AdvantageError, GroupAdvantage};
use turnwise_training::{Credit, CreditStreams, OutcomeCredit, StepReport, metric};
use turnwise_trajectory::{PolicyVersion, Trajectory};

use crate::books::SnapshotBooks;
use crate::environment::REWARD_BOUND;
use crate::witness::member_of;
use crate::world::World;
use crate::{Invariant, Violation};

/// The bound on an environment's rewards, a rubric's score and a penalty together.
const LARGEST_REWARD: f64 = 2.0 * REWARD_BOUND;

/// The real credit, which sees every compared group.
pub(crate) struct WatchedCredit {
    pub(crate) world: Arc<World>,
}

impl std::fmt::Debug for WatchedCredit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("WatchedCredit")
    }
}

impl Credit for WatchedCredit {
    fn name(&self) -> &'static str {
        "watched"
    }

    fn streams(&self, group: &[&Trajectory]) -> Result<CreditStreams, AdvantageError> {
        if let Err(violation) = self.check(group) {
            self.world.violate(violation);
        }
        OutcomeCredit { advantage: GroupAdvantage::LeaveOneOut }.streams(group)
    }
}

impl WatchedCredit {
    fn check(&self, group: &[&Trajectory]) -> Result<(), Violation> {
        let Some(first) = group.first() else { return Ok(()) };
        let id = first.identity.group;
        let members: BTreeSet<u32> = group.iter().map(|member| member.identity.member).collect();
        let is_one = group.iter().all(|member| member.identity.group == id);
        let is_new = {
            let mut state = self.world.state();
            state.trained_at = state.witness.version();
            state.witness.compared.insert(id)
        };
        let size = self.world.plan.trainer.rollout.group_size;
        if !is_one || !is_new || members.len() != group.len() || group.len() > size {
            let found = format!("group {}: members {members:?}, new {is_new}", id.0);
            return Err(Violation::new(Invariant::Groups, found));
        }
        for member in group {
            let reward = member.reward();
            if !reward.is_some_and(|reward| reward.is_finite() && reward.abs() <= LARGEST_REWARD) {
                let found = format!("{:?} with reward {reward:?} is compared", member.outcome);
                return Err(Violation::new(Invariant::Rewards, found));
            }
        }
        Ok(())
    }
}

/// Checks the batch of a step, which was trained at `trained_version`.
pub(crate) fn check_report(
    world: &World,
    report: &StepReport,
    trained_version: PolicyVersion,
) -> Result<(), Violation> {
    for trajectory in &report.trained {
        check_trained(world, trajectory, trained_version)?;
    }
    let mismatch = report.metrics.get(metric::MISMATCH_MAX).unwrap_or(0.0);
    if mismatch > 1e-4 {
        let found = format!("log-probabilities differ by {mismatch}");
        return Err(Violation::new(Invariant::Agreement, found));
    }
    Ok(())
}

fn check_trained(
    world: &World,
    trajectory: &Trajectory,
    trained_version: PolicyVersion,
) -> Result<(), Violation> {
    let member = member_of(&trajectory.identity);
    let who = format!("group {} member {}", member.0.0, member.1);
    if !world.state().witness.trained.insert(member) {
        return Err(Violation::new(Invariant::TrainedOnce, format!("{who} trained twice")));
    }
    let mut newest = PolicyVersion(0);
    for token in trajectory.sampled() {
        if token.version < newest || token.version > trained_version {
            let found = format!("{who}: {} after {newest} at {trained_version}", token.version);
            return Err(Violation::new(Invariant::Versions, found));
        }
        newest = token.version;
        if !token.trains() {
            continue;
        }
        let is_scored = token.logprob.is_finite()
            && token.logprob <= 0.0
            && token.advantage.is_some_and(f32::is_finite);
        if !is_scored {
            return Err(Violation::new(Invariant::Scored, format!("{who}: {token:?}")));
        }
        let staleness = token.version.staleness(trained_version);
        if staleness > world.plan.staleness() {
            let most = world.plan.staleness();
            let found = format!("{who}: a token {staleness} versions old, allowed are {most}");
            return Err(Violation::new(Invariant::Staleness, found));
        }
    }
    world.state().witness.settle(trajectory)?;
    trace_trained(world, trajectory);
    Ok(())
}

fn trace_trained(world: &World, trajectory: &Trajectory) {
    let identity = &trajectory.identity;
    let reward = trajectory.reward().unwrap_or(f64::NAN).to_bits();
    let numbers = [identity.group.0, u64::from(identity.member), u64::from(identity.attempt)];
    world.event("trained", &[numbers[0], numbers[1], numbers[2], reward]);
    world.event(&trajectory.outcome.label(), &[trajectory.n_sampled() as u64]);
}

/// Checks the books between two steps, when nothing runs.
pub(crate) fn check_books(world: &World, books: &SnapshotBooks) -> Result<(), Violation> {
    check_conservation(world, books)?;
    check_open(world, books)?;
    check_leaks(world, books)
}

fn check_conservation(world: &World, books: &SnapshotBooks) -> Result<(), Violation> {
    let open = (books.waiting().count() + books.finished().count()) as u64;
    let ledger = books.ledger();
    let accounted = books.progress.trained + books.dropped() + open + books.delivered_open();
    let state = world.state();
    let seen = state.witness.dispatched.len() as u64;
    let trained = state.witness.trained.len() as u64;
    let settled = books.progress.trained + books.dropped_by_trainer() + books.delivered_open();
    if ledger.dispatched == accounted
        && ledger.dispatched == seen
        && books.progress.trained == trained
        && ledger.delivered == settled
    {
        return Ok(());
    }
    let found = format!(
        "{} dispatched ({seen} seen), {} trained ({trained} seen), {} dropped, {open} open, {} delivered and not trained",
        ledger.dispatched,
        books.progress.trained,
        books.dropped(),
        books.delivered_open(),
    );
    Err(Violation::new(Invariant::Conservation, found))
}

fn check_open(world: &World, books: &SnapshotBooks) -> Result<(), Violation> {
    let witness = &world.state().witness;
    let mut open = BTreeSet::new();
    for identity in books.waiting().chain(books.finished()) {
        let member = member_of(identity);
        let who = format!("group {} member {}", member.0.0, member.1);
        if !open.insert(member) || witness.trained.contains(&member) {
            return Err(Violation::new(Invariant::TrainedOnce, format!("{who} is there twice")));
        }
        if witness.compared.contains(&identity.group) {
            let found = format!("{who} is open, its group was compared");
            return Err(Violation::new(Invariant::Groups, found));
        }
        if identity.attempt > world.plan.trainer.rollout.max_retries && !world.plan.restarts() {
            let found = format!("{who} is at attempt {}", identity.attempt);
            return Err(Violation::new(Invariant::Conservation, found));
        }
    }
    if open.len() as u64 > world.plan.max_open() {
        let found = format!("{} episodes are open", open.len());
        return Err(Violation::new(Invariant::Admission, found));
    }
    Ok(())
}

fn check_leaks(world: &World, books: &SnapshotBooks) -> Result<(), Violation> {
    let session = |identity: &turnwise_trajectory::Identity| {
        SessionId::of(identity.sampling_seed, identity.attempt)
    };
    let sessions: BTreeSet<SessionId> = books.waiting().map(session).collect();
    let alive = books.waiting().count();
    let state = world.state();
    let left = state.sessions.difference(&sessions).count();
    if left == 0 && state.environments == alive && state.running == 0 {
        return Ok(());
    }
    let found = format!(
        "{left} sessions, {} environments of {alive} suspended episodes, {} calls",
        state.environments, state.running
    );
    Err(Violation::new(Invariant::Leaks, found))
}

/// Checks that nothing is left after the end of the run.
pub(crate) fn check_empty(world: &World) -> Result<(), Violation> {
    let state = world.state();
    if state.environments == 0 && state.running == 0 {
        return Ok(());
    }
    let found = format!("{} environments, {} calls", state.environments, state.running);
    Err(Violation::new(Invariant::Leaks, found))
}
