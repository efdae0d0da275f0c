//! The rollout scheduler: decides how many groups are open, which tasks they play, and when a step has enough groups.

use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use turnwise_environment::LedgerStore;
use turnwise_rollout::{
    EpisodeRunner, Group, Iteration, Opponent, Policy, PoolSnapshot, RestoreError, RolloutError,
    RolloutPool, StopSignal,
};
use turnwise_trajectory::{GroupId, PolicyVersion};

use crate::capacity::{Occupancy, capacity};
use crate::credit::has_equal_rewards;
use crate::curriculum::{Curriculum, TaskQueue};
use crate::lead::Lead;

/// How rollouts and training alternate or overlap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RolloutMode {
    /// Rollouts and training alternate. Reproducible.
    #[default]
    Synchronous,
    /// While one batch is trained on, the next is rolled out under the old weights; the new weights are published when
    /// both are done. Reproducible, and one version stale. Best if the two take about equally long.
    Pipelined,
    /// Rollouts never wait: weights change in the middle of a turn, and the trainer takes finished groups. Which
    /// weights sample which token depends on the machine, so no two runs are equal.
    Asynchronous,
}

/// Replaces groups without variance by further groups (DAPO, arXiv 2503.14476, section 3.2), up to a bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DynamicSampling {
    /// Maximal number of groups of one step that are replaced; then the step continues with the groups that it has.
    pub max_groups: u64,
    /// Maximal time for replacements in one step, in seconds.
    pub max_seconds: f64,
}

impl Default for DynamicSampling {
    fn default() -> Self {
        Self { max_groups: 32, max_seconds: 600.0 }
    }
}

/// The trainer's settings that concern rollouts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SchedulerSettings {
    pub(crate) mode: RolloutMode,
    pub(crate) groups_per_step: usize,
    pub(crate) max_staleness: u32,
    /// Whether stale trajectories are dropped whole; otherwise no episode is cancelled for its age.
    pub(crate) drops_stale: bool,
    pub(crate) dynamic_sampling: Option<DynamicSampling>,
    pub(crate) curriculum: Curriculum,
    pub(crate) seed: u64,
}

/// The groups of a run on their way to the trainer.
pub(crate) struct Scheduler {
    pool: RolloutPool,
    policy: Arc<dyn Policy>,
    settings: SchedulerSettings,
    state: State,
    /// Finished groups that wait for the trainer.
    ready: Vec<Group>,
    /// The finished groups that dynamic sampling replaces; they are handed over with the next step, for the books.
    flat: Vec<Group>,
    news: Iteration,
    /// The lead of asynchronous rollouts over the trainer.
    lead: Lead,
    /// Whether a batch has been handed over whose update is not published yet.
    is_training: bool,
    /// An error while a batch was trained on; the batch is finished first.
    broken: Option<RolloutError>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    /// The number of rounds that were started: one for each step, and one ahead in pipelined mode.
    rounds: u64,
    groups_started: u64,
    /// The number of rollouts that were trained on in published steps.
    accepted: u64,
    /// The version at which the run began.
    first_version: Option<PolicyVersion>,
    queue: TaskQueue,
    /// The round that a stop has interrupted.
    #[serde(default)]
    open_round: Option<OpenRound>,
}

/// The state of an interrupted round, from which it continues as if there had been no stop.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct OpenRound {
    /// The number of groups without variance that may still be replaced.
    n_replaceable: u64,
}

/// A scheduler as data.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SchedulerSnapshot {
    state: State,
    pub(crate) pool: PoolSnapshot,
    ready: Vec<Group>,
    flat: Vec<Group>,
    /// The counts since the last reported step.
    news: Iteration,
}

/// The groups of a step, and their counts.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    pub(crate) groups: Vec<Group>,
    pub(crate) news: Iteration,
    /// The number of groups that were replaced because they had no variance.
    pub(crate) n_replaced: usize,
}

impl Scheduler {
    pub(crate) fn new(
        pool: RolloutPool,
        policy: Arc<dyn Policy>,
        settings: SchedulerSettings,
    ) -> Self {
        Self {
            pool,
            policy,
            settings,
            state: State::default(),
            ready: Vec::new(),
            flat: Vec::new(),
            news: Iteration::default(),
            lead: Lead::new(settings.groups_per_step, settings.max_staleness),
            is_training: false,
            broken: None,
        }
    }

    /// Gives the seats that the trained policy does not play to `opponent`.
    pub(crate) fn against(self, opponent: Opponent) -> Self {
        Self { pool: self.pool.against(opponent), ..self }
    }

    pub(crate) fn with_runner(self, runner: Arc<dyn EpisodeRunner>) -> Self {
        Self { pool: self.pool.with_runner(runner), ..self }
    }

    pub(crate) fn with_ledger(self, store: Arc<dyn LedgerStore>) -> Self {
        Self { pool: self.pool.with_ledger(store), ..self }
    }

    pub(crate) fn pool(&self) -> &RolloutPool {
        &self.pool
    }

    pub(crate) fn policy(&self) -> &Arc<dyn Policy> {
        &self.policy
    }

    /// Returns the number of scored episodes in finished groups that wait for the trainer; the pool counts those
    /// without a reward.
    pub(crate) fn n_ready(&self) -> u64 {
        let groups = self.ready.iter().chain(&self.flat);
        groups.map(|group| group.n_scored() as u64).sum()
    }

    /// Runs rollouts until there is something to train on; returns false if `stop` was requested first.
    pub(crate) async fn gather(
        &mut self,
        round: u64,
        version: PolicyVersion,
        stop: &StopSignal,
    ) -> Result<bool, RolloutError> {
        if let Some(broken) = self.broken.take() {
            return Err(broken);
        }
        self.is_training = false;
        self.state.first_version.get_or_insert(version);
        match self.settings.mode {
            RolloutMode::Asynchronous => self.gather_running(version, stop).await,
            RolloutMode::Pipelined if self.state.open_round.is_none() && !self.ready.is_empty() => {
                Ok(true)
            }
            RolloutMode::Synchronous | RolloutMode::Pipelined => {
                self.round(round, version, stop).await
            }
        }
    }

    /// Takes the groups of a step and the counts since the last step.
    pub(crate) fn take(&mut self) -> Gathered {
        self.ready.sort_by_key(|group| group.id);
        let n = match self.settings.mode {
            RolloutMode::Asynchronous => self.settings.groups_per_step.min(self.ready.len()),
            RolloutMode::Synchronous | RolloutMode::Pipelined => self.ready.len(),
        };
        let mut groups: Vec<Group> = self.ready.drain(..n).collect();
        self.lead.left_over(self.ready.len());
        let n_replaced = self.flat.len();
        groups.append(&mut self.flat);
        groups.sort_by_key(|group| group.id);
        for group in &groups {
            self.record(group);
        }
        let mut news = std::mem::take(&mut self.news);
        if self.settings.mode == RolloutMode::Asynchronous {
            news.absorb(self.pool.take_news());
            self.take_in(std::mem::take(&mut news.groups));
        }
        self.is_training = true;
        Gathered { groups, news, n_replaced }
    }

    /// Lets a round begin again of which no episode counted.
    pub(crate) fn repeat(&mut self, round: u64) {
        self.state.rounds = round;
    }

    /// Runs one round: starts its groups, and iterates until one of them is finished. With a small budget that can take
    /// several iterations: a token budget advances every episode by at least one token, and a time budget grows while
    /// nothing finishes.
    ///
    /// Returns false if `stop` was requested first; the next call continues the round.
    async fn round(
        &mut self,
        round: u64,
        version: PolicyVersion,
        stop: &StopSignal,
    ) -> Result<bool, RolloutError> {
        if self.state.rounds <= round {
            self.state.rounds = round + 1;
            self.start_groups(self.settings.groups_per_step as u64, version);
        }
        let started = Instant::now();
        let n_replaceable = || self.settings.dynamic_sampling.map_or(0, |it| it.max_groups);
        let open = self.state.open_round.take();
        let mut n_left = open.map_or_else(n_replaceable, |open| open.n_replaceable);
        loop {
            let iterated = self.pool.iterate(&self.policy, stop).await;
            // Groups that finished before the error are kept too.
            let (mut iteration, broken) = match iterated {
                Ok(iteration) => (iteration, None),
                Err(broken) => (self.pool.take_news(), Some(broken)),
            };
            self.take_in(std::mem::take(&mut iteration.groups));
            self.news.absorb(iteration);
            if broken.is_some() || stop.requested() {
                self.state.open_round = Some(OpenRound { n_replaceable: n_left });
                return broken.map_or(Ok(false), Err);
            }
            self.replace(&mut n_left, started, version);
            let has_something = !self.ready.is_empty() || !self.flat.is_empty();
            if self.pool.n_waiting() == 0 || (has_something && self.is_enough(n_left)) {
                return Ok(true);
            }
        }
    }

    /// Runs rollouts in the background until there is a batch, or until as many groups as a batch has were dropped
    /// whole: the step then continues with the rest, like a synchronous step.
    async fn gather_running(
        &mut self,
        version: PolicyVersion,
        stop: &StopSignal,
    ) -> Result<bool, RolloutError> {
        let started = Instant::now();
        let n_lost = self.pool.n_lost();
        loop {
            self.keep_running(version, stop);
            if stop.requested() {
                self.halt().await;
                return Ok(false);
            }
            let has_something = !self.ready.is_empty() || !self.flat.is_empty();
            let is_exhausted =
                has_something && (self.n_replaceable() == Some(0) || self.is_late(started));
            let is_enough = self.ready.len() >= self.settings.groups_per_step;
            let n_lost = self.pool.n_lost() - n_lost;
            let is_unlucky = n_lost >= self.settings.groups_per_step as u64;
            if is_enough || is_exhausted || is_unlucky {
                self.lead.waited(started.elapsed(), Instant::now());
                return Ok(true);
            }
            match self.pool.settle().await {
                Ok(true) => {}
                Ok(false) => return Ok(!stop.requested()),
                Err(broken) => {
                    self.halt().await;
                    return Err(broken);
                }
            }
        }
    }

    /// Runs the next round during an update. An error is returned after the update.
    ///
    /// A stop does not end the round early: its episodes are sampled with the weights before the update, which are gone
    /// afterwards, and the run would continue with other tokens than one that was not stopped.
    pub(crate) async fn round_beside(&mut self, round: u64, version: PolicyVersion) {
        self.broken = self.round(round, version, &StopSignal::never()).await.err();
    }

    /// Keeps rollouts running during an update, and never returns by itself. An error is returned after the update.
    pub(crate) async fn keep_going(&mut self, version: PolicyVersion, stop: &StopSignal) {
        loop {
            self.keep_running(version, stop);
            match self.pool.settle().await {
                Ok(true) => {}
                Ok(false) => std::future::pending::<()>().await,
                Err(broken) => {
                    // A group that trips the breaker has just been delivered, and is kept.
                    let groups = self.pool.take_groups();
                    self.take_in(groups);
                    self.broken = Some(broken);
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Suspends all running episodes.
    pub(crate) async fn halt(&mut self) {
        self.pool.halt().await;
        let mut news = self.pool.take_news();
        self.take_in(std::mem::take(&mut news.groups));
        self.news.absorb(news);
    }

    /// Updates the scheduler after new weights: trained groups make room, and stale episodes are cancelled.
    ///
    /// A group that a cancellation completes is graded here and not at the next iteration, except in asynchronous mode:
    /// a checkpoint between two steps would otherwise bring it to the trainer a step earlier.
    pub(crate) async fn published(&mut self, version: PolicyVersion, n_trained: u64) {
        self.state.accepted += n_trained;
        if self.settings.drops_stale {
            let oldest = version.0.saturating_sub(self.settings.max_staleness);
            self.pool.give_up_older_than(PolicyVersion(oldest));
        }
        if self.settings.mode != RolloutMode::Asynchronous {
            self.halt().await;
        }
    }

    pub(crate) fn snapshot(&self) -> SchedulerSnapshot {
        SchedulerSnapshot {
            state: self.state.clone(),
            pool: self.pool.snapshot(),
            ready: self.ready.clone(),
            flat: self.flat.clone(),
            news: self.news.clone(),
        }
    }

    pub(crate) fn restore(&mut self, snapshot: SchedulerSnapshot) -> Result<(), RestoreError> {
        self.state = snapshot.state;
        self.ready = snapshot.ready;
        self.flat = snapshot.flat;
        self.news = snapshot.news;
        self.pool.restore(snapshot.pool)
    }

    fn keep_running(&mut self, version: PolicyVersion, stop: &StopSignal) {
        let groups = self.pool.take_groups();
        self.take_in(groups);
        if !stop.requested() {
            // The concurrency and the number of groups that the trainer will soon take limit the new groups: more would
            // only wait, and age.
            let room = self.pool.settings().max_concurrent.saturating_sub(self.pool.n_active());
            let groups = room.div_ceil(self.pool.settings().group_size);
            let wanted = self.lead.groups().saturating_sub(self.ready.len() + self.pool.n_open());
            self.start_groups(groups.min(wanted) as u64, version);
        }
        self.pool.launch(&self.policy, stop);
    }

    /// Starts up to `n` groups, as far as staleness admits them, and returns their number.
    fn start_groups(&mut self, n: u64, version: PolicyVersion) -> u64 {
        let group_size = self.pool.settings().group_size as u64;
        let n = n.min(self.capacity(version) / group_size);
        for _ in 0..n {
            let settings = &self.settings;
            let n_tasks = self.pool.tasks().len();
            let task = self.state.queue.next(settings.curriculum, n_tasks, settings.seed);
            self.pool.start(GroupId(self.state.groups_started), task);
            self.state.groups_started += 1;
        }
        n
    }

    fn capacity(&self, version: PolicyVersion) -> u64 {
        let settings = self.pool.settings();
        let first = self.state.first_version.unwrap_or(version);
        let ready: usize = self.ready.iter().map(|group| group.members.len()).sum();
        let batch = (self.settings.groups_per_step * settings.group_size) as u64;
        let occupancy = Occupancy {
            version: u64::from(first.staleness(version)),
            accepted: self.state.accepted,
            outstanding: self.pool.ledger().open() + ready as u64,
            in_training: if self.is_training { batch } else { 0 },
        };
        capacity(&occupancy, batch, self.settings.max_staleness)
    }

    /// Sorts finished groups into those to train on and those without variance.
    fn take_in(&mut self, groups: Vec<Group>) {
        for group in groups {
            if self.settings.dynamic_sampling.is_some() && is_flat(&group) {
                self.flat.push(group);
            } else {
                self.ready.push(group);
            }
        }
    }

    /// Starts groups in place of those without variance; `n_left` is the number of further replacements.
    fn replace(&mut self, n_left: &mut u64, started: Instant, version: PolicyVersion) {
        if self.is_late(started) {
            *n_left = 0;
        }
        let has = self.ready.len() + self.pool.n_open();
        let wanted = self.settings.groups_per_step.saturating_sub(has) as u64;
        *n_left -= self.start_groups(wanted.min(*n_left), version);
    }

    /// Returns the number of groups without variance that this step may still replace; `None` without dynamic sampling.
    fn n_replaceable(&self) -> Option<u64> {
        let sampling = self.settings.dynamic_sampling?;
        Some(sampling.max_groups.saturating_sub(self.flat.len() as u64))
    }

    /// Returns whether a step need not wait for more groups with variance.
    fn is_enough(&self, n_left: u64) -> bool {
        n_left == 0 || self.ready.len() >= self.settings.groups_per_step
    }

    fn is_late(&self, started: Instant) -> bool {
        self.settings.dynamic_sampling.is_some_and(|sampling| {
            let limit = Duration::try_from_secs_f64(sampling.max_seconds).unwrap_or(Duration::MAX);
            started.elapsed() >= limit
        })
    }

    /// Reports the success rate of a group to the curriculum.
    fn record(&mut self, group: &Group) {
        let seats = || group.members.iter().flat_map(|one| std::iter::once(one).chain(&one.others));
        let scored = || seats().filter(|one| one.reward().is_some());
        let (n, solved) = (scored().count(), scored().filter(|one| one.solved).count());
        if let Some(member) = group.members.first().filter(|_| n > 0) {
            self.state.queue.record(member.identity.task_index, solved as f64 / n as f64);
        }
    }
}

/// Returns whether no seat of a group has different rewards.
fn is_flat(group: &Group) -> bool {
    let n_others = group.members.iter().map(|member| member.others.len()).max().unwrap_or(0);
    let on_seat = |seat: usize| {
        let all = group.members.iter();
        let on_seat = all.filter_map(move |member| match seat.checked_sub(1) {
            None => Some(member),
            Some(other) => member.others.get(other),
        });
        on_seat.filter(|member| member.reward().is_some()).collect::<Vec<_>>()
    };
    (0..=n_others).all(|seat| has_equal_rewards(&on_seat(seat)))
}
