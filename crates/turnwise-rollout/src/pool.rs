use std::fmt;
use std::sync::Arc;

use tokio::time::sleep;
use turnwise_environment::{LedgerStore, Rubric, TaskSet, derive_seed};
use turnwise_trajectory::{
    CancelReason, GroupId, Identity, InfraReason, Outcome, PolicyVersion, Trajectory,
};

use crate::episode::release;
use crate::grading::Graded;
use crate::{
    AgentFactory, BlockingThreads, Episode, EpisodeRunner, Group, InProcess, Meter, Opponent,
    Policy, Progress, StopSignal, uniform_at,
};

mod breaker;
mod groups;
mod iteration;
mod ledger;
mod queue;
mod running;
mod settings;
mod snapshot;

use breaker::Breaker;
pub use breaker::RolloutError;
pub use groups::NO_TURN;
use groups::OpenGroups;
pub use iteration::{Faults, Iteration};
pub use ledger::{Census, Ledger};
use queue::EpisodeQueue;
use running::{Due, Returned, Running};
pub use settings::PoolSettings;
pub use snapshot::PoolSnapshot;

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
    queue: EpisodeQueue,
    groups: OpenGroups,
    running: Running,
    /// Results since the last call of `take_news`.
    news: Iteration,
    breaker: Breaker,
    /// The number of iterations in a row without a sampled token or a finished episode.
    fruitless: u32,
    /// The oldest version that can be trained on; an episode with an older token is cancelled.
    oldest: PolicyVersion,
    /// The number of episodes of the iteration that have returned.
    meter: Meter,
    /// Who plays the seats that the trained policy leaves.
    opponent: Opponent,
    /// Where episodes run.
    runner: Arc<dyn EpisodeRunner>,
    /// The store that records the tool calls of all episodes.
    calls: Option<Arc<dyn LedgerStore>>,
    /// The last engine used; it may hold sessions of suspended episodes.
    engine: Option<Arc<dyn Policy>>,
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
            queue: EpisodeQueue::default(),
            groups: OpenGroups::default(),
            running: Running::default(),
            news: Iteration::default(),
            breaker,
            fruitless: 0,
            oldest: PolicyVersion::default(),
            meter: Meter::default(),
            opponent: Opponent::default(),
            runner: Arc::new(InProcess),
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

    /// Runs episodes elsewhere than in this process.
    #[must_use]
    pub fn with_runner(mut self, runner: Arc<dyn EpisodeRunner>) -> Self {
        self.runner = runner;
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
        self.groups.len()
    }

    /// Returns the number of episodes that wait to be advanced, including fresh ones.
    #[must_use]
    pub fn n_waiting(&self) -> usize {
        self.queue.len()
    }

    /// Returns the number of groups that were dropped whole since the pool was created.
    #[must_use]
    pub fn n_lost(&self) -> u64 {
        self.groups.n_lost()
    }

    /// Returns the number of episodes that are being advanced or are due.
    #[must_use]
    pub fn n_active(&self) -> usize {
        self.n_waiting() + self.running.len()
    }

    /// Returns the ledger of all episodes.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        self.groups.ledger()
    }

    /// Counts where the open episodes are.
    #[must_use]
    pub fn census(&self) -> Census {
        let suspended = self.queue.episodes().filter(|episode| episode.suspensions() > 0).count();
        Census {
            running: self.running.len() as u64,
            suspended: suspended as u64,
            fresh: (self.queue.len() - suspended) as u64,
            gathered: self.groups.n_gathered(self.settings.group_size) as u64,
        }
    }

    /// Starts a group on a task; its episodes wait to be advanced.
    ///
    /// # Panics
    /// Panics if the group is already open.
    pub fn start(&mut self, id: GroupId, task_index: usize) {
        self.groups.open(id, self.settings.group_size);
        for member in 0..self.settings.group_size as u32 {
            let identity = self.identity(id, task_index, member);
            self.queue.wait(self.episode(identity));
        }
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
        let (share, n_resumed) = self.queue.begin_iteration(&self.settings);
        self.news.resumed += n_resumed;
        self.meter.begin("episodes", self.queue.n_due() as u64);
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
        self.queue.end_iteration(share, stop.requested() || result.is_err());
        result.map(|()| self.take_news())
    }

    /// Runs waiting episodes in the background, up to the limit on concurrency.
    pub fn launch(&mut self, policy: &Arc<dyn Policy>, stop: &StopSignal) {
        self.news.resumed += self.queue.make_due();
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
            Some(graded) = self.groups.next_graded() => {
                let tripped = self.count_taken_back(&graded);
                let min_size = self.settings.min_group_size;
                self.groups.deliver(graded.group, min_size, &mut self.news);
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

    /// Launches due episodes, as far as there is room.
    fn fill(&mut self, policy: &Arc<dyn Policy>, tokens: u64, stop: &StopSignal) {
        self.engine = Some(policy.clone());
        while self.running.len() < self.settings.max_concurrent && !stop.requested() {
            let Some(due) = self.queue.pop_due() else { return };
            match reason_to_give_up(&due.episode, &self.groups, self.oldest) {
                Some(reason) => self.cancel(due.episode, reason),
                None => self.running.launch(due, (&self.runner, policy), tokens, stop),
            }
        }
    }

    fn take_back(&mut self, returned: Returned) -> Result<(), RolloutError> {
        match returned.progress {
            Progress::Suspended(episode) => {
                let drawn = episode.n_drawn().saturating_sub(returned.n_drawn_before) as u64;
                self.news.n_sampled += drawn;
                self.queue.record_used(returned.place, returned.used_before + drawn);
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
        self.news.count(&trajectory.outcome);
        let tripped = self.breaker.count(&trajectory).or_else(|| self.count_stuck());
        if let Some(due) = self.retry(&trajectory, used) {
            self.queue.push_due(due);
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
            self.news.count(&member.outcome);
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

    /// Creates a new attempt at a broken episode, while attempts are left and its group is open. A conversation that
    /// cannot be rendered is not tried again: the seeds of a new attempt are the same, and so is the conversation.
    fn retry(&self, trajectory: &Trajectory, used: u64) -> Option<Due> {
        let identity = &trajectory.identity;
        let is_broken = matches!(&trajectory.outcome, Outcome::InfraFault(fault) if fault.reason != InfraReason::Render);
        let is_wanted = !self.groups.is_doomed(identity.group);
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
        let (groups, oldest) = (&self.groups, self.oldest);
        let given_up = self.queue.remove(|episode| reason_to_give_up(episode, groups, oldest));
        let any = !given_up.is_empty();
        for (episode, reason) in given_up {
            self.cancel(episode, reason);
        }
        any
    }

    /// Keeps a suspended episode, or cancels it if there is a reason to give up.
    fn keep(&mut self, episode: Episode) {
        match reason_to_give_up(&episode, &self.groups, self.oldest) {
            Some(reason) => self.cancel(episode, reason),
            None => self.queue.wait(episode),
        }
    }

    fn cancel(&mut self, episode: Episode, reason: CancelReason) {
        let trajectory = match &self.engine {
            Some(engine) => episode.cancel(reason, &**engine),
            None => episode.give_up(reason),
        };
        self.news.count(&trajectory.outcome);
        self.file(trajectory);
    }

    /// Adds a final attempt to its group, and stops the rest of a group that is no longer worth continuing.
    fn file(&mut self, trajectory: Trajectory) {
        let doomed = self.groups.file(trajectory, &self.settings, self.rubric.as_ref());
        if let Some(group) = doomed {
            self.running.stop_group(group);
        }
    }
}

/// Returns why an episode cannot be trained on, if so: its group is dropped, or its tokens are older than `oldest`.
fn reason_to_give_up(
    episode: &Episode,
    groups: &OpenGroups,
    oldest: PolicyVersion,
) -> Option<CancelReason> {
    if groups.is_doomed(episode.identity().group) {
        return Some(CancelReason::GroupDropped);
    }
    let is_stale = episode.oldest_version().is_some_and(|version| version < oldest);
    is_stale.then_some(CancelReason::Stale)
}

impl Drop for RolloutPool {
    /// Drops suspended and running episodes with the pool, and releases their engine sessions.
    fn drop(&mut self) {
        let Some(engine) = self.engine.take() else { return };
        let suspended = self.queue.episodes().filter(|episode| episode.suspensions() > 0);
        let sessions = suspended.flat_map(Episode::sessions);
        for (frozen, session) in sessions.chain(self.running.sessions()) {
            release(frozen.as_deref().unwrap_or(&*engine), session);
        }
    }
}

impl fmt::Debug for RolloutPool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RolloutPool")
            .field("tasks", &self.tasks.name())
            .field("census", &self.census())
            .field("ledger", self.ledger())
            .finish_non_exhaustive()
    }
}
