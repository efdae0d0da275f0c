use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use turnwise_environment::{LedgerStore, Rubric, TaskSet, derive_seed};
use turnwise_trajectory::{CancelReason, GroupId, Identity, Outcome, PolicyVersion, Trajectory};

use crate::episode::release;
use crate::group::has_reward;
use crate::{
    AgentFactory, BlockingThreads, Episode, EpisodeSnapshot, Group, Meter, Opponent, Policy,
    Progress, RestoreError, StopSignal, grading, uniform_at,
};

mod breaker;
mod iteration;
mod ledger;
mod running;
mod settings;

pub use breaker::RolloutError;
use breaker::{Breaker, BreakerCounts};
use grading::Graded;
pub use iteration::Iteration;
use iteration::Unfinished;
pub use ledger::{Census, Ledger};
use running::{Due, Place, Returned, Running};
pub use settings::PoolSettings;

/// Runs groups of episodes side by side and keeps suspended episodes.
///
/// A pool runs in one of two ways. [`iterate`](Self::iterate) advances every episode once and returns when all of them
/// have finished or are suspended: the settings alone determine which weights sample which token.
/// [`launch`](Self::launch) and [`settle`](Self::settle) run episodes in the background, under the policy's current
/// weights.
///
/// # Example
///
/// Two groups of four episodes, in iterations that may sample 16 tokens each:
///
/// ```
/// use std::sync::Arc;
///
/// use turnwise_rollout::{ChatAgents, Limits, Policy, PoolSettings, RolloutPool, StopSignal};
/// use turnwise_testkit::{AlphabetRenderer, Echo, TabularModel};
/// use turnwise_trajectory::{GroupId, Sampling};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), turnwise_rollout::RolloutError> {
/// let renderer = Arc::new(AlphabetRenderer::new("abc"));
/// let policy: Arc<dyn Policy> = Arc::new(TabularModel::new(renderer.n_ids()));
/// let agents = ChatAgents::new(renderer);
/// let settings = PoolSettings {
///     group_size: 4,
///     tokens_per_iteration: Some(16),
///     limits: Limits { max_turn_tokens: 4, ..Limits::default() },
///     ..PoolSettings::default()
/// };
/// let tasks = Arc::new(vec![Echo::new(2, true), Echo::new(3, true)]);
/// let mut pool = RolloutPool::new(tasks, Arc::new(agents), None, settings, 7);
/// pool.start(GroupId(0), 0);
/// pool.start(GroupId(1), 1);
///
/// let mut groups = Vec::new();
/// while pool.n_open() > 0 {
///     groups.extend(pool.iterate(&policy, &StopSignal::never()).await?.groups);
/// }
/// assert_eq!(groups.len(), 2);
/// assert!(groups.iter().all(|group| group.rewards().len() == 4));
/// # Ok(())
/// # }
/// ```
pub struct RolloutPool {
    tasks: Arc<dyn TaskSet>,
    agents: Arc<dyn AgentFactory>,
    rubric: Option<Arc<dyn Rubric>>,
    settings: PoolSettings,
    seed: u64,
    open: BTreeMap<GroupId, OpenGroup>,
    /// Episodes that are not being advanced: suspended, or fresh.
    waiting: Vec<Episode>,
    /// Episodes to advance as soon as there is room.
    due: VecDeque<Due>,
    running: Running,
    /// Complete groups that are being graded.
    grading: FuturesUnordered<BoxFuture<'static, Graded>>,
    /// Results since the last call of `take_news`.
    news: Iteration,
    ledger: Ledger,
    breaker: Breaker,
    /// The tokens that suspended episodes have sampled in the current iteration.
    used: BTreeMap<Place, u64>,
    /// The iteration that a stop cut short, and that the next call continues.
    unfinished: Option<Unfinished>,
    /// The number of iterations in a row without a sampled token or a finished episode.
    fruitless: u32,
    /// The oldest version that can be trained on; an episode with an older token is cancelled.
    oldest: PolicyVersion,
    /// Groups with too few members left, whose remaining episodes are cancelled.
    doomed: BTreeSet<GroupId>,
    /// The number of groups that were dropped whole.
    n_lost: u64,
    /// The number of episodes of the iteration that have returned.
    meter: Meter,
    /// Who plays the seats that the trained policy leaves.
    opponent: Opponent,
    /// The store that records the tool calls of all episodes.
    calls: Option<Arc<dyn LedgerStore>>,
    /// The last engine used; it may hold sessions of suspended episodes.
    engine: Option<Arc<dyn Policy>>,
}

/// A group with unfinished members.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct OpenGroup {
    finished: Vec<Trajectory>,
}

/// A pool as data.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PoolSnapshot {
    finished: BTreeMap<GroupId, Vec<Trajectory>>,
    waiting: Vec<EpisodeSnapshot>,
    /// Episodes that cannot continue and restart.
    restart: Vec<Identity>,
    ledger: Ledger,
    breaker: BreakerCounts,
    unfinished: Option<Unfinished>,
    fruitless: u32,
    oldest: PolicyVersion,
    doomed: BTreeSet<GroupId>,
    n_lost: u64,
}

impl PoolSnapshot {
    /// Returns the number of suspended episodes that can continue.
    #[must_use]
    pub fn n_continuing(&self) -> usize {
        self.waiting.len()
    }

    /// Returns the number of episodes that must restart.
    #[must_use]
    pub fn n_restarting(&self) -> usize {
        self.restart.len()
    }

    /// Rejects open groups that do not have `size` members: such groups can be neither finished nor compared with
    /// others.
    fn check_size(&self, size: usize) -> Result<(), RestoreError> {
        let mut members: BTreeMap<GroupId, usize> = BTreeMap::new();
        for (group, finished) in &self.finished {
            *members.entry(*group).or_default() += finished.len();
        }
        let waiting = self.waiting.iter().map(EpisodeSnapshot::identity).chain(&self.restart);
        for identity in waiting {
            if !self.finished.contains_key(&identity.group) {
                let group = identity.group.0;
                return Err(RestoreError::State(format!("its group {group} is not open")));
            }
            *members.entry(identity.group).or_default() += 1;
        }
        match members.into_values().find(|members| *members != size) {
            Some(was) => Err(RestoreError::GroupSize { was, is: size }),
            None => Ok(()),
        }
    }
}

impl RolloutPool {
    /// Creates an empty pool. All seeds of its episodes derive from `seed`.
    ///
    /// # Panics
    /// Panics if a setting that counts something is 0, or the minimum group size exceeds the group size.
    #[must_use]
    pub fn new(
        tasks: Arc<dyn TaskSet>,
        agents: Arc<dyn AgentFactory>,
        rubric: Option<Arc<dyn Rubric>>,
        settings: PoolSettings,
        seed: u64,
    ) -> Self {
        assert!(
            settings.group_size > 0 && settings.max_concurrent > 0,
            "a pool runs at least one episode"
        );
        assert!(
            settings.min_group_size <= settings.group_size,
            "min_group_size exceeds group_size"
        );
        let breaker = Breaker::new(&settings);
        Self {
            tasks,
            agents,
            rubric,
            settings,
            seed,
            open: BTreeMap::new(),
            waiting: Vec::new(),
            due: VecDeque::new(),
            running: Running::default(),
            grading: FuturesUnordered::new(),
            news: Iteration::default(),
            ledger: Ledger::default(),
            breaker,
            used: BTreeMap::new(),
            unfinished: None,
            fruitless: 0,
            oldest: PolicyVersion::default(),
            doomed: BTreeSet::new(),
            n_lost: 0,
            meter: Meter::default(),
            opponent: Opponent::default(),
            calls: None,
            engine: None,
        }
    }

    /// Reports on `meter` how many episodes of an iteration have returned.
    #[must_use]
    pub fn with_meter(mut self, meter: Meter) -> Self {
        self.meter = meter;
        self
    }

    /// Records the tool calls of all episodes in `store`, which outlives the process: a call to a tool that is not
    /// idempotent is made at most once, also if the pool is restored from a snapshot that is older than the call. Set
    /// the store before episodes are started or restored.
    #[must_use]
    pub fn with_ledger(mut self, store: Arc<dyn LedgerStore>) -> Self {
        self.calls = Some(store);
        self
    }

    /// Gives the seats that the trained policy does not play to `opponent`. Without it, the trained policy plays all. Set
    /// it before episodes are started or restored.
    #[must_use]
    pub fn against(mut self, opponent: Opponent) -> Self {
        self.opponent = opponent;
        self
    }

    /// Returns the tasks of the pool.
    #[must_use]
    pub fn tasks(&self) -> &dyn TaskSet {
        &*self.tasks
    }

    /// Returns the settings of the pool.
    #[must_use]
    pub fn settings(&self) -> &PoolSettings {
        &self.settings
    }

    /// Returns the number of unfinished groups.
    #[must_use]
    pub fn n_open(&self) -> usize {
        self.open.len()
    }

    /// Returns the number of episodes that wait to be advanced, including fresh ones.
    #[must_use]
    pub fn n_waiting(&self) -> usize {
        self.waiting.len() + self.due.len()
    }

    /// Returns the number of groups that were dropped whole since the pool was created.
    #[must_use]
    pub fn n_lost(&self) -> u64 {
        self.n_lost
    }

    /// Returns the number of episodes that are being advanced or are due.
    #[must_use]
    pub fn n_active(&self) -> usize {
        self.n_waiting() + self.running.len()
    }

    /// Returns the ledger of all episodes.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Counts where the open episodes are.
    #[must_use]
    pub fn census(&self) -> Census {
        let idle = || self.waiting.iter().chain(self.due.iter().map(|due| &due.episode));
        let suspended = idle().filter(|episode| episode.suspensions() > 0).count();
        let finished: usize = self.open.values().map(|group| group.finished.len()).sum();
        Census {
            running: self.running.len() as u64,
            suspended: suspended as u64,
            fresh: (idle().count() - suspended) as u64,
            gathered: (finished + self.grading.len() * self.settings.group_size) as u64,
        }
    }

    /// Starts a group on a task; its episodes wait to be advanced.
    ///
    /// # Panics
    /// Panics if the group is already open.
    pub fn start(&mut self, id: GroupId, task_index: usize) {
        let fresh = self.open.insert(id, OpenGroup::default()).is_none();
        assert!(fresh, "group {} is open already", id.0);
        for member in 0..self.settings.group_size as u32 {
            let identity = self.identity(id, task_index, member);
            self.waiting.push(self.episode(identity));
        }
        self.ledger.dispatched += self.settings.group_size as u64;
    }

    /// Advances every waiting episode once, retries those that broke, and returns the finished groups.
    ///
    /// If `stop` comes first, the iteration stays unfinished: the next call continues it and gives each episode the
    /// rest of its share of the tokens. Stopping therefore changes no token, also if the pool is saved and restored in
    /// between.
    ///
    /// # Errors
    /// If too many episodes break. No episode is lost: running ones are suspended first.
    pub async fn iterate(
        &mut self,
        policy: &Arc<dyn Policy>,
        stop: &StopSignal,
    ) -> Result<Iteration, RolloutError> {
        let (out_of_time, round) = stop.child();
        let share = self.begin_iteration();
        self.meter.begin("episodes", self.due.len() as u64);
        let result = {
            // Doubles the time after each iteration without progress: an engine that discards unfinished requests would
            // otherwise restart the same turn forever.
            let patience = 1 << self.fruitless.min(20);
            let timer = sleep(self.settings.iteration_timeout().saturating_mul(patience));
            tokio::pin!(timer);
            loop {
                self.fill(policy, share, &round);
                tokio::select! {
                    biased;
                    settled = self.settle() => match settled {
                        Ok(true) => {}
                        Ok(false) => break Ok(()),
                        Err(error) => break Err(error),
                    },
                    () = &mut timer, if !round.requested() => out_of_time.stop(),
                }
            }
        };
        let is_fruitless = self.news.n_sampled == 0 && self.news.outcomes.is_empty();
        self.fruitless = if is_fruitless { self.fruitless + 1 } else { 0 };
        if result.is_err() {
            self.halt().await;
        }
        self.meter.end();
        let used = self.end_iteration();
        if stop.requested() || result.is_err() {
            self.unfinished = Some(Unfinished::new(share, used));
        }
        result.map(|()| self.take_news())
    }

    /// Runs waiting episodes in the background, up to the limit on concurrency.
    pub fn launch(&mut self, policy: &Arc<dyn Policy>, stop: &StopSignal) {
        self.queue();
        self.fill(policy, u64::MAX, stop);
    }

    /// Waits until a running episode returns or a group has been graded; returns false if there is neither. Dropping
    /// the future loses nothing.
    ///
    /// # Errors
    /// If too many episodes break.
    pub async fn settle(&mut self) -> Result<bool, RolloutError> {
        tokio::select! {
            biased;
            Some(graded) = self.grading.next() => {
                let tripped = self.count_taken_back(&graded);
                self.deliver(graded.group);
                tripped.map_or(Ok(true), Err)
            }
            Some(returned) = self.running.next() => self.take_back(returned).map(|()| true),
            else => Ok(false),
        }
    }

    /// Stops all running episodes: afterwards each is suspended or finished.
    pub async fn halt(&mut self) {
        self.running.stop_all();
        // An error is ignored here: it would stop the episodes, and they are all being stopped.
        while !matches!(self.settle().await, Ok(false)) {}
    }

    /// Returns the groups that were finished since the last call.
    pub fn take_groups(&mut self) -> Vec<Group> {
        std::mem::take(&mut self.news.groups)
    }

    /// Returns the results since the last call; only for use with [`launch`](Self::launch).
    pub fn take_news(&mut self) -> Iteration {
        let mut news = std::mem::take(&mut self.news);
        news.groups.sort_by_key(|group| group.id);
        news.suspended = self.census().suspended as usize;
        news
    }

    /// Cancels episodes that cannot be trained on: those with tokens older than `oldest`, and the rest of a group that
    /// has too few members left. Running episodes are stopped, and cancelled when they return.
    pub fn give_up_older_than(&mut self, oldest: PolicyVersion) {
        self.oldest = self.oldest.max(oldest);
        self.running.stop_launched_before(self.oldest);
        // Cancelling an episode can doom its group, and with it other episodes.
        while self.sweep() {}
    }

    /// Returns the pool as data.
    ///
    /// # Panics
    /// Panics if episodes are running; call [`halt`](Self::halt) first.
    #[must_use]
    pub fn snapshot(&self) -> PoolSnapshot {
        assert!(self.running.len() + self.grading.len() == 0, "halt the pool before its snapshot");
        let mut snapshot = PoolSnapshot {
            finished: self.open.iter().map(|(id, group)| (*id, group.finished.clone())).collect(),
            ledger: self.ledger.clone(),
            breaker: self.breaker.counts(),
            unfinished: self.unfinished.clone(),
            fruitless: self.fruitless,
            oldest: self.oldest,
            doomed: self.doomed.clone(),
            n_lost: self.n_lost,
            ..PoolSnapshot::default()
        };
        for episode in self.waiting.iter().chain(self.due.iter().map(|due| &due.episode)) {
            match episode.snapshot() {
                Some(episode) => snapshot.waiting.push(episode),
                None => snapshot.restart.push(episode.identity().clone()),
            }
        }
        snapshot
    }

    /// Restores a snapshot into an empty pool.
    ///
    /// # Errors
    /// If an episode cannot be restored, or the open groups have another size.
    ///
    /// # Panics
    /// Panics if the pool has open groups.
    pub fn restore(&mut self, snapshot: PoolSnapshot) -> Result<(), RestoreError> {
        assert!(self.open.is_empty(), "restore a pool before using it");
        snapshot.check_size(self.settings.group_size)?;
        self.open = snapshot
            .finished
            .into_iter()
            .map(|(id, finished)| (id, OpenGroup { finished }))
            .collect();
        self.ledger = snapshot.ledger;
        self.breaker.restore(snapshot.breaker);
        self.unfinished = snapshot.unfinished;
        self.fruitless = snapshot.fruitless;
        self.oldest = snapshot.oldest;
        self.doomed = snapshot.doomed;
        self.n_lost = snapshot.n_lost;
        let mut restart = snapshot.restart;
        for episode in snapshot.waiting {
            let identity = episode.identity().clone();
            match Episode::restore_against(episode, &*self.tasks, &*self.agents, &self.opponent) {
                Ok(episode) => self.waiting.push(self.recorded(episode)),
                // An environment that refuses its snapshot costs one attempt, not the run.
                Err(RestoreError::Environment(error)) => {
                    tracing::warn!(group = identity.group.0, member = identity.member, %error, "an episode restarts");
                    restart.push(identity);
                }
                Err(error) => return Err(error),
            }
        }
        for mut identity in restart {
            identity.attempt += 1;
            self.waiting.push(self.episode(identity));
        }
        Ok(())
    }

    fn identity(&self, group: GroupId, task_index: usize, member: u32) -> Identity {
        let seed = derive_seed(self.seed, group.0);
        Identity {
            environment: self.tasks.name().to_owned(),
            environment_version: self.tasks.version(),
            task: self.tasks.key(task_index),
            task_index,
            group,
            member,
            attempt: 0,
            environment_seed: derive_seed(seed, 0),
            sampling_seed: derive_seed(seed, 1 + u64::from(member)),
        }
    }

    fn episode(&self, identity: Identity) -> Episode {
        let environment = self.tasks.environment(identity.task_index);
        let limits = self.settings.limits.clone();
        let episode = Episode::new(identity, environment, &*self.agents, limits);
        self.recorded(episode.against(&self.opponent))
    }

    /// Attaches the store of tool calls to an episode, if the pool has one.
    fn recorded(&self, episode: Episode) -> Episode {
        match &self.calls {
            Some(calls) => episode.with_ledger(calls.clone()),
            None => episode,
        }
    }

    /// Makes the episodes of the iteration due, and returns the number of tokens that each may sample in it.
    fn begin_iteration(&mut self) -> u64 {
        self.used.clear();
        let Some(unfinished) = self.unfinished.take() else {
            let share = self.settings.share(self.n_waiting());
            self.queue();
            return share;
        };
        let share = unfinished.share;
        let used = unfinished.used();
        for episode in std::mem::take(&mut self.waiting) {
            let used = used.get(&place(episode.identity())).copied().unwrap_or(0);
            if used < share {
                self.due.push_back(Due { episode, delay: Duration::ZERO, used });
            } else {
                // The episode has used its share, and stays suspended until the next iteration.
                self.used.insert(place(episode.identity()), used);
                self.waiting.push(episode);
            }
        }
        share
    }

    /// Moves the remaining due episodes to the waiting ones, and returns the tokens that each waiting episode has
    /// sampled in the iteration.
    fn end_iteration(&mut self) -> BTreeMap<Place, u64> {
        let mut used = std::mem::take(&mut self.used);
        for Due { episode, used: of_attempts, .. } in self.due.drain(..) {
            used.insert(place(episode.identity()), of_attempts);
            self.waiting.push(episode);
        }
        used
    }

    /// Makes waiting episodes due: suspended ones before fresh ones, oldest version first.
    fn queue(&mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.sort_by_cached_key(|episode| {
            let identity = episode.identity();
            let oldest = episode.oldest_version();
            (episode.suspensions() == 0, oldest, identity.group, identity.member)
        });
        self.news.resumed += waiting.iter().filter(|episode| episode.suspensions() > 0).count();
        let at_once = |episode| Due { episode, delay: Duration::ZERO, used: 0 };
        self.due.extend(waiting.into_iter().map(at_once));
    }

    /// Launches due episodes, as far as there is room.
    fn fill(&mut self, policy: &Arc<dyn Policy>, tokens: u64, stop: &StopSignal) {
        self.engine = Some(policy.clone());
        while self.running.len() < self.settings.max_concurrent && !stop.requested() {
            let Some(due) = self.due.pop_front() else { return };
            match self.reason_to_give_up(&due.episode) {
                Some(reason) => self.cancel(due.episode, reason),
                None => self.running.launch(due, policy, tokens, stop),
            }
        }
    }

    fn take_back(&mut self, returned: Returned) -> Result<(), RolloutError> {
        match returned.progress {
            Progress::Suspended(episode) => {
                let drawn = episode.n_drawn().saturating_sub(returned.n_drawn_before) as u64;
                self.news.n_sampled += drawn;
                self.used.insert(returned.place, returned.used_before + drawn);
                self.meter.advance(1);
                self.keep(episode);
                Ok(())
            }
            Progress::Finished(trajectory) => {
                let others = trajectory.others.iter().map(Trajectory::n_sampled);
                let n_sampled = trajectory.n_sampled() + others.sum::<usize>();
                let drawn = n_sampled.saturating_sub(returned.n_drawn_before) as u64;
                self.news.n_sampled += drawn;
                self.take_finished(trajectory, returned.used_before + drawn)
            }
        }
    }

    /// Counts a finished attempt, and retries or files it. `used` is the number of the iteration's tokens that this
    /// attempt and earlier ones have sampled.
    fn take_finished(&mut self, trajectory: Trajectory, used: u64) -> Result<(), RolloutError> {
        if let Outcome::InfraFault(fault) = &trajectory.outcome {
            let Identity { group, member, attempt, .. } = trajectory.identity;
            tracing::warn!(group = group.0, member, attempt, %fault, "an episode broke");
        }
        *self.news.outcomes.entry(trajectory.outcome.label()).or_default() += 1;
        let tripped = self.breaker.count(&trajectory).or_else(|| self.count_stuck());
        if let Some(due) = self.retry(&trajectory, used) {
            self.due.push_back(due);
        } else {
            self.meter.advance(1);
            self.file(trajectory);
        }
        tripped.map_or(Ok(()), Err)
    }

    /// Counts the members that grading made infrastructure faults, in addition to their first outcomes.
    fn count_taken_back(&mut self, graded: &Graded) -> Option<RolloutError> {
        let mut faults = Vec::new();
        for place in &graded.taken_back {
            let member = &graded.group.members[*place];
            let Outcome::InfraFault(fault) = &member.outcome else { continue };
            let Identity { group, member: place, .. } = member.identity;
            tracing::warn!(group = group.0, member = place, %fault, "a verdict was taken back");
            *self.news.outcomes.entry(member.outcome.label()).or_default() += 1;
            faults.push(fault);
        }
        self.breaker.count_graded(&faults)
    }

    /// Returns an error if too many threads are stuck.
    fn count_stuck(&self) -> Option<RolloutError> {
        let n = BlockingThreads::of_process().stuck_threads();
        let environment = || self.tasks.name().to_owned();
        (n > BlockingThreads::MAX_STUCK)
            .then(|| RolloutError::StuckThreads { n, environment: environment() })
    }

    /// Creates a new attempt at a broken episode, while attempts are left and its group is open.
    fn retry(&self, trajectory: &Trajectory, used: u64) -> Option<Due> {
        let identity = &trajectory.identity;
        let is_broken = matches!(trajectory.outcome, Outcome::InfraFault(_));
        let is_wanted = !self.doomed.contains(&identity.group);
        (is_broken && is_wanted && identity.attempt < self.settings.max_retries).then(|| {
            let attempt = identity.attempt + 1;
            let uniform = uniform_at(identity.sampling_seed, u64::from(attempt));
            Due {
                episode: self.episode(Identity { attempt, ..identity.clone() }),
                delay: self.settings.retry_delay(attempt, uniform),
                used,
            }
        })
    }

    /// Cancels waiting episodes that have a reason to give up; returns whether there were any.
    fn sweep(&mut self) -> bool {
        let (waiting, due) = (std::mem::take(&mut self.waiting), std::mem::take(&mut self.due));
        let mut given_up = Vec::new();
        for episode in waiting {
            match self.reason_to_give_up(&episode) {
                Some(reason) => given_up.push((episode, reason)),
                None => self.waiting.push(episode),
            }
        }
        for due in due {
            match self.reason_to_give_up(&due.episode) {
                Some(reason) => given_up.push((due.episode, reason)),
                None => self.due.push_back(due),
            }
        }
        let any = !given_up.is_empty();
        for (episode, reason) in given_up {
            self.cancel(episode, reason);
        }
        any
    }

    /// Keeps a suspended episode, or cancels it if there is a reason to give up.
    fn keep(&mut self, episode: Episode) {
        match self.reason_to_give_up(&episode) {
            Some(reason) => self.cancel(episode, reason),
            None => self.waiting.push(episode),
        }
    }

    fn reason_to_give_up(&self, episode: &Episode) -> Option<CancelReason> {
        if self.doomed.contains(&episode.identity().group) {
            return Some(CancelReason::GroupDropped);
        }
        let is_stale = episode.oldest_version().is_some_and(|version| version < self.oldest);
        is_stale.then_some(CancelReason::Stale)
    }

    fn cancel(&mut self, episode: Episode, reason: CancelReason) {
        let trajectory = match &self.engine {
            Some(engine) => episode.cancel(reason, &**engine),
            None => episode.give_up(reason),
        };
        *self.news.outcomes.entry(trajectory.outcome.label()).or_default() += 1;
        self.file(trajectory);
    }

    /// Adds a final attempt to its group, and grades the group when it is complete.
    fn file(&mut self, trajectory: Trajectory) {
        let id = trajectory.identity.group;
        let group = self.open.get_mut(&id).expect("an episode runs while its group is open");
        group.finished.push(trajectory);
        if group.finished.len() < self.settings.group_size {
            self.doom(id);
            return;
        }
        let mut members = self.open.remove(&id).expect("it was just found").finished;
        self.doomed.remove(&id);
        members.sort_unstable_by_key(|member| member.identity.member);
        let (rubric, limit) = (self.rubric.clone(), self.settings.rubric_timeout());
        self.grading.push(Box::pin(grading::grade(rubric, limit, Group { id, members })));
    }

    /// Cancels the rest of a group if staleness has left too few members. Faults never do, because each member is
    /// retried on its own.
    fn doom(&mut self, id: GroupId) {
        let finished = &self.open[&id].finished;
        let is_lost = |member: &&Trajectory| {
            matches!(member.outcome, Outcome::Cancelled(CancelReason::Stale))
        };
        let n_lost = finished.iter().filter(is_lost).count();
        let n_left = self.settings.group_size - n_lost;
        if n_left < self.settings.min_group_size && self.doomed.insert(id) {
            self.running.stop_group(id);
        }
    }

    /// Counts a graded group, and delivers it if enough members are scored.
    fn deliver(&mut self, group: Group) {
        let viable = group.n_scored() >= self.settings.min_group_size;
        for member in &group.members {
            let reason = match (viable, has_reward(member)) {
                (true, true) => {
                    self.ledger.delivered += 1;
                    continue;
                }
                (false, true) => "group_dropped".to_owned(),
                (_, false) if member.outcome.is_scored() => "no_turn".to_owned(),
                (_, false) => member.outcome.label(),
            };
            *self.ledger.dropped.entry(reason.clone()).or_default() += 1;
            *self.news.dropped.entry(reason).or_default() += 1;
        }
        if viable {
            self.news.groups.push(group);
        } else {
            self.n_lost += 1;
        }
    }
}

fn place(identity: &Identity) -> Place {
    (identity.group, identity.member)
}

impl Drop for RolloutPool {
    /// Drops suspended and running episodes with the pool, and releases their engine sessions.
    fn drop(&mut self) {
        let Some(engine) = self.engine.take() else { return };
        let idle = self.waiting.iter().chain(self.due.iter().map(|due| &due.episode));
        let suspended = idle.filter(|episode| episode.suspensions() > 0);
        let sessions = suspended.flat_map(Episode::own_sessions);
        sessions.chain(self.running.sessions()).for_each(|session| release(&*engine, session));
    }
}

impl fmt::Debug for RolloutPool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RolloutPool")
            .field("tasks", &self.tasks.name())
            .field("census", &self.census())
            .field("ledger", &self.ledger)
            .finish_non_exhaustive()
    }
}
