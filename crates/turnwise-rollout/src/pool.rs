use std::collections::BTreeMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use turnwise_environment::{EnvironmentError, Rubric, TaskSet, derive_seed};
use turnwise_trajectory::{GroupId, Identity, InfraFault, InfraReason, Outcome, Trajectory};

use crate::{
    AgentFactory, Allowance, Episode, EpisodeSnapshot, Group, Limits, Policy, Progress,
    RestoreError, StopSignal,
};

/// How groups are run.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolSettings {
    /// Rollouts of one task.
    pub group_size: usize,
    /// A group with fewer scored members is dropped whole.
    pub min_group_size: usize,
    /// Episodes that run at the same time.
    pub max_concurrent: usize,
    /// Tokens that one iteration may draw over all its episodes; each gets an equal share, and suspends when it is used up.
    /// `None` lets every episode finish.
    pub tokens_per_iteration: Option<u64>,
    /// New attempts at an episode that broke.
    pub max_retries: u32,
    /// This many infrastructure faults in a row stop the run.
    pub max_faults_in_row: u32,
    /// What an episode may use.
    pub limits: Limits,
}

impl Default for PoolSettings {
    /// Groups of 8 of which 2 must be scored, no token budget, and the retries and breaker of the fault table.
    fn default() -> Self {
        Self {
            group_size: 8,
            min_group_size: 2,
            max_concurrent: 256,
            tokens_per_iteration: None,
            max_retries: 2,
            max_faults_in_row: 20,
            limits: Limits::default(),
        }
    }
}

/// Runs groups of episodes side by side, iteration by iteration, and keeps what is suspended.
pub struct RolloutPool {
    tasks: Arc<dyn TaskSet>,
    agents: Arc<dyn AgentFactory>,
    rubric: Option<Arc<dyn Rubric>>,
    settings: PoolSettings,
    seed: u64,
    open: BTreeMap<GroupId, OpenGroup>,
    /// Episodes to advance in the next iteration: first those that were suspended, oldest first, then fresh ones.
    waiting: Vec<Episode>,
    ledger: Ledger,
    faults_in_row: u32,
}

/// A group some of whose members are not finished.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct OpenGroup {
    finished: Vec<Trajectory>,
}

/// The books: every episode that was started is somewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Episodes started; a retry is not a new episode.
    pub dispatched: u64,
    /// Episodes handed over in finished groups.
    pub delivered: u64,
    /// Episodes dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
}

impl Ledger {
    /// Episodes that are neither delivered nor dropped: running, suspended, or finished in a group that is not.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.dispatched - self.delivered - self.dropped.values().sum::<u64>()
    }
}

/// What one iteration brought.
#[derive(Debug, Default)]
pub struct Iteration {
    /// The groups that are finished, oldest first.
    pub groups: Vec<Group>,
    /// Episodes that had been suspended before and went on.
    pub resumed: usize,
    /// Episodes that are suspended at the end.
    pub suspended: usize,
    /// Tokens drawn.
    pub n_sampled: u64,
    /// Outcomes of the attempts that ended, by label.
    pub outcomes: BTreeMap<String, u64>,
    /// Members of finished groups that were dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
}

impl Iteration {
    /// Adds what a later iteration brought.
    pub fn absorb(&mut self, later: Self) {
        self.groups.extend(later.groups);
        self.resumed += later.resumed;
        self.suspended = later.suspended;
        self.n_sampled += later.n_sampled;
        for (label, n) in later.outcomes {
            *self.outcomes.entry(label).or_default() += n;
        }
        for (reason, n) in later.dropped {
            *self.dropped.entry(reason).or_default() += n;
        }
    }
}

/// A pool on its way to disk.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PoolSnapshot {
    finished: BTreeMap<GroupId, Vec<Trajectory>>,
    waiting: Vec<EpisodeSnapshot>,
    /// Episodes whose environment takes no snapshots: they start anew.
    restart: Vec<Identity>,
    ledger: Ledger,
}

impl PoolSnapshot {
    /// How many suspended episodes can go on where they are.
    #[must_use]
    pub fn n_continuing(&self) -> usize {
        self.waiting.len()
    }

    /// How many must start anew.
    #[must_use]
    pub fn n_restarting(&self) -> usize {
        self.restart.len()
    }
}

impl RolloutPool {
    /// An empty pool. All seeds of its episodes derive from `seed`.
    ///
    /// # Panics
    /// When a setting that counts something is 0, or the minimum group exceeds the group.
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
        assert!(settings.min_group_size <= settings.group_size, "no group reaches the minimum");
        Self {
            tasks,
            agents,
            rubric,
            settings,
            seed,
            open: BTreeMap::new(),
            waiting: Vec::new(),
            ledger: Ledger::default(),
            faults_in_row: 0,
        }
    }

    /// The tasks the pool plays.
    #[must_use]
    pub fn tasks(&self) -> &dyn TaskSet {
        &*self.tasks
    }

    /// Groups that are not finished.
    #[must_use]
    pub fn n_open(&self) -> usize {
        self.open.len()
    }

    /// Episodes that will go on in the next iteration, fresh ones included.
    #[must_use]
    pub fn n_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The books.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Starts a group on a task; its episodes run in the next iteration.
    ///
    /// # Panics
    /// When the group is open already.
    pub fn start(&mut self, id: GroupId, task_index: usize) {
        let fresh = self.open.insert(id, OpenGroup::default()).is_none();
        assert!(fresh, "group {} is open already", id.0);
        for member in 0..self.settings.group_size as u32 {
            let identity = self.identity(id, task_index, member);
            self.waiting.push(self.episode(identity));
        }
        self.ledger.dispatched += self.settings.group_size as u64;
    }

    /// Advances every waiting episode once, retries those that broke, and hands over the groups that are finished.
    ///
    /// # Errors
    /// When too many episodes in a row break.
    pub async fn iterate(
        &mut self,
        policy: &Arc<dyn Policy>,
        stop: &StopSignal,
    ) -> Result<Iteration, RolloutError> {
        let mut iteration = Iteration::default();
        let mut ready = std::mem::take(&mut self.waiting);
        iteration.resumed = ready.iter().filter(|episode| episode.suspensions() > 0).count();
        let share = self.share(ready.len());
        let mut tripped = None;
        while !ready.is_empty() {
            let progress = self
                .advance_all(ready, policy, &Allowance { tokens: share, stop: stop.clone() })
                .await;
            iteration.n_sampled += progress.n_sampled;
            iteration.suspended += progress.suspended.len();
            self.waiting.extend(progress.suspended);
            ready = Vec::new();
            for trajectory in progress.finished {
                *iteration.outcomes.entry(trajectory.outcome.label()).or_default() += 1;
                tripped = tripped.or(self.count_fault(&trajectory));
                match self.retry(&trajectory) {
                    Some(episode) => ready.push(episode),
                    None => self.file(trajectory),
                }
            }
            if let Some(error) = tripped {
                // Nothing is lost: what would have been tried again waits.
                self.waiting.append(&mut ready);
                return Err(error);
            }
        }
        self.hand_over(&mut iteration).await;
        Ok(iteration)
    }

    /// The pool as data.
    #[must_use]
    pub fn snapshot(&self) -> PoolSnapshot {
        let mut snapshot = PoolSnapshot {
            finished: self.open.iter().map(|(id, group)| (*id, group.finished.clone())).collect(),
            ledger: self.ledger.clone(),
            ..PoolSnapshot::default()
        };
        for episode in &self.waiting {
            match episode.snapshot() {
                Some(episode) => snapshot.waiting.push(episode),
                None => snapshot.restart.push(episode.identity().clone()),
            }
        }
        snapshot
    }

    /// Goes on where a snapshot was taken; the pool must be empty.
    ///
    /// # Errors
    /// When an episode cannot be restored.
    ///
    /// # Panics
    /// When groups are open.
    pub fn restore(&mut self, snapshot: PoolSnapshot) -> Result<(), RestoreError> {
        assert!(self.open.is_empty(), "a pool is restored before it is used");
        self.open = snapshot
            .finished
            .into_iter()
            .map(|(id, finished)| (id, OpenGroup { finished }))
            .collect();
        self.ledger = snapshot.ledger;
        let mut restart = snapshot.restart;
        for episode in snapshot.waiting {
            let identity = episode.identity().clone();
            match Episode::restore(episode, &*self.tasks, &*self.agents) {
                Ok(episode) => self.waiting.push(episode),
                // One environment that refuses its snapshot costs one attempt, not the run.
                Err(RestoreError::Environment(error)) => {
                    tracing::warn!(group = identity.group.0, member = identity.member, %error, "an episode starts anew");
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
        Episode::new(identity, environment, &*self.agents, self.settings.limits.clone())
    }

    /// The tokens each of `n` episodes may draw. Equal shares, fixed before anything runs: who is cut where does then not
    /// depend on who is faster.
    fn share(&self, n: usize) -> u64 {
        self.settings
            .tokens_per_iteration
            .map_or(u64::MAX, |tokens| (tokens / n.max(1) as u64).max(1))
    }

    async fn advance_all(
        &self,
        episodes: Vec<Episode>,
        policy: &Arc<dyn Policy>,
        allowance: &Allowance,
    ) -> Advanced {
        let permits = Arc::new(Semaphore::new(self.settings.max_concurrent));
        let mut running = JoinSet::new();
        for (place, episode) in episodes.into_iter().enumerate() {
            let (policy, allowance, permits) = (policy.clone(), allowance.clone(), permits.clone());
            running.spawn(async move {
                let _permit = permits.acquire_owned().await.expect("the semaphore is never closed");
                let before = episode.n_drawn();
                (place, before, episode.advance(&*policy, &allowance).await)
            });
        }
        let mut done = running.join_all().await;
        // In the order they were started in, whatever order they came back in.
        done.sort_unstable_by_key(|(place, ..)| *place);
        let mut advanced = Advanced::default();
        for (_, before, progress) in done {
            let after = match progress {
                Progress::Suspended(episode) => {
                    let n = episode.n_drawn();
                    advanced.suspended.push(episode);
                    n
                }
                Progress::Finished(trajectory) => {
                    let n = trajectory.n_sampled();
                    advanced.finished.push(trajectory);
                    n
                }
            };
            advanced.n_sampled += (after - before) as u64;
        }
        advanced
    }

    /// The breaker: an error when this was one fault in a row too many.
    fn count_fault(&mut self, trajectory: &Trajectory) -> Option<RolloutError> {
        let Outcome::InfraFault(fault) = &trajectory.outcome else {
            self.faults_in_row = 0;
            return None;
        };
        let Identity { group, member, attempt, .. } = trajectory.identity;
        tracing::warn!(group = group.0, member, attempt, %fault, "an episode broke");
        self.faults_in_row += 1;
        (self.faults_in_row >= self.settings.max_faults_in_row)
            .then(|| RolloutError::TooManyFaults { n: self.faults_in_row, last: fault.clone() })
    }

    /// A fresh attempt at an episode that broke, while there are attempts left.
    fn retry(&self, trajectory: &Trajectory) -> Option<Episode> {
        let identity = &trajectory.identity;
        let is_broken = matches!(trajectory.outcome, Outcome::InfraFault(_));
        (is_broken && identity.attempt < self.settings.max_retries)
            .then(|| self.episode(Identity { attempt: identity.attempt + 1, ..identity.clone() }))
    }

    fn file(&mut self, trajectory: Trajectory) {
        let group = self
            .open
            .get_mut(&trajectory.identity.group)
            .expect("an episode runs while its group is open");
        group.finished.push(trajectory);
    }

    /// Moves the groups all of whose members are finished into the iteration.
    async fn hand_over(&mut self, iteration: &mut Iteration) {
        let size = self.settings.group_size;
        let complete: Vec<GroupId> = self
            .open
            .iter()
            .filter(|(_, group)| group.finished.len() == size)
            .map(|(id, _)| *id)
            .collect();
        for id in complete {
            let mut members = self.open.remove(&id).expect("it was just found").finished;
            members.sort_unstable_by_key(|member| member.identity.member);
            self.score(&mut members).await;
            let group = Group { id, members };
            self.count_dropped(&group, iteration);
            iteration.groups.push(group);
        }
        iteration.groups.retain(|group| group.scored().count() >= self.settings.min_group_size);
    }

    fn count_dropped(&mut self, group: &Group, iteration: &mut Iteration) {
        let viable = group.scored().count() >= self.settings.min_group_size;
        for member in &group.members {
            let reason = match (viable, member.reward()) {
                (true, Some(_)) => {
                    self.ledger.delivered += 1;
                    continue;
                }
                (false, Some(_)) => "group_dropped".to_owned(),
                (_, None) => member.outcome.label(),
            };
            *self.ledger.dropped.entry(reason.clone()).or_default() += 1;
            *iteration.dropped.entry(reason).or_default() += 1;
        }
    }

    /// Adds the rubric's scores, and makes a member that nobody scored an infrastructure fault.
    async fn score(&self, members: &mut [Trajectory]) {
        if let Some(rubric) = &self.rubric {
            score_by(&**rubric, self.settings.limits.environment_timeout(), members).await;
        }
        for member in members
            .iter_mut()
            .filter(|member| member.outcome.is_scored() && member.reward().is_none())
        {
            break_off(member, InfraReason::BadReward, "nobody scored the episode".to_owned());
        }
    }
}

/// What came of advancing some episodes.
#[derive(Default)]
struct Advanced {
    suspended: Vec<Episode>,
    finished: Vec<Trajectory>,
    n_sampled: u64,
}

async fn score_by(rubric: &dyn Rubric, limit: Duration, members: &mut [Trajectory]) {
    let mut scorable: Vec<&mut Trajectory> = members
        .iter_mut()
        .filter(|member| member.outcome.is_scored() && !member.turns.is_empty())
        .collect();
    let transcripts: Vec<_> = scorable.iter().map(|member| member.transcript()).collect();
    let scores = AssertUnwindSafe(rubric.score(&transcripts)).catch_unwind();
    let scores = match timeout(limit, scores).await {
        Ok(Ok(scores)) => scores,
        Ok(Err(_)) => Err(EnvironmentError::new("it panicked")),
        Err(_) => Err(EnvironmentError::new(format!("it took over {} s", limit.as_secs_f64()))),
    };
    let broken = match scores {
        Ok(scores) if scores.len() != scorable.len() => Some((
            InfraReason::BadReward,
            format!("{} scores for {} episodes", scores.len(), scorable.len()),
        )),
        Ok(scores) => {
            scorable
                .iter_mut()
                .zip(scores)
                .for_each(|(member, score)| add_score(rubric.name(), member, score));
            None
        }
        Err(error) => Some((InfraReason::RubricError, error.to_string())),
    };
    if let Some((reason, message)) = broken {
        let message = format!("rubric `{}`: {message}", rubric.name());
        for member in scorable {
            break_off(member, reason, message.clone());
        }
    }
}

fn add_score(rubric: &str, member: &mut Trajectory, score: Option<f64>) {
    let Some(score) = score else { return };
    if !(member.reward().unwrap_or(0.0) + score).is_finite() {
        break_off(member, InfraReason::BadReward, format!("rubric `{rubric}` returned {score}"));
        return;
    }
    let turn = member.turns.last_mut().expect("only episodes with turns are scored");
    turn.reward = Some(turn.reward.unwrap_or(0.0) + score);
}

/// Takes the verdict on a finished episode back.
fn break_off(member: &mut Trajectory, reason: InfraReason, message: String) {
    member.outcome = Outcome::InfraFault(InfraFault { reason, message });
    member.solved = false;
}

impl fmt::Debug for RolloutPool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RolloutPool")
            .field("tasks", &self.tasks.name())
            .field("n_open", &self.n_open())
            .field("n_waiting", &self.n_waiting())
            .field("ledger", &self.ledger)
            .finish_non_exhaustive()
    }
}

/// Why rollouts cannot go on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RolloutError {
    /// The breaker: something is broken for all episodes.
    #[error("run episodes: {n} in a row broke, the last with {last}")]
    TooManyFaults {
        /// How many.
        n: u32,
        /// The last one.
        last: InfraFault,
    },
}
