use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use turnwise_environment::{LedgerStore, Rubric, TaskSet};
use turnwise_objective::Objective;
use turnwise_rollout::{
    AgentFactory, EpisodeRunner, Faults, Group, Iteration, Meter, Opponent, Policy, PoolSettings,
    PoolSnapshot, RestoreError, RolloutError, RolloutPool, StopSignal,
};
use turnwise_trajectory::{InfraReason, Trajectory};

use crate::clip_range::Spread;
use crate::learning::Learning;
use crate::report::{Timing, UpdateReport};
use crate::scheduler::{Gathered, Scheduler, SchedulerSettings, SchedulerSnapshot};
use crate::{
    Admission, Admitted, AutoClip, Behavior, Books, Canary, Credit, Curriculum, DropReason,
    DynamicSampling, Learner, RatioScope, RolloutMode, Schedule, StaleTokens, StepReport,
    TrainError, assign_batch_credit,
};

/// The replaceable parts of a training run.
pub struct Parts<L> {
    /// The tasks to train on.
    pub tasks: Arc<dyn TaskSet>,
    /// The factory of agents, with renderer and sampling settings.
    pub agents: Arc<dyn AgentFactory>,
    /// A rubric that scores episodes in addition to their environment.
    pub rubric: Option<Arc<dyn Rubric>>,
    /// The engine that samples.
    pub policy: Arc<dyn Policy>,
    /// The model that learns.
    pub learner: L,
    /// The loss.
    pub objective: Box<dyn Objective>,
    /// The credit assignment.
    pub credit: Box<dyn Credit>,
}

/// The settings of training.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainerSettings {
    /// The number of groups started at each step. Suspended groups of earlier steps stay open in addition.
    pub groups_per_step: usize,
    /// The settings of the rollout pool.
    pub rollout: PoolSettings,
    /// How rollouts and training alternate or overlap.
    pub mode: RolloutMode,
    /// Whether groups without variance are replaced by others in the same step.
    pub dynamic_sampling: Option<DynamicSampling>,
    /// The rule that chooses tasks.
    pub curriculum: Curriculum,
    /// The rules of admission.
    pub admission: Admission,
    /// The tokens that share a ratio.
    pub ratio_scope: RatioScope,
    /// The log-probabilities in the ratio's denominator.
    pub behavior: Behavior,
    /// The number of optimiser steps for each batch of rollouts; 4 in the paper (section 5.1).
    pub n_minibatches: usize,
    /// The number of distinct tokens in one forward pass: a prefix that rows share counts once.
    pub micro_batch_tokens: usize,
    /// The rule that sets the clip range; `None` leaves the objective's own. The objective must have a range for the
    /// ratio of a sequence.
    pub clip: Option<AutoClip>,
    /// The canary that checks each publication, if any.
    pub canary: Option<Canary>,
    /// The learning-rate schedule.
    pub schedule: Schedule,
    /// The norm at which gradients are clipped.
    pub max_grad_norm: f64,
    /// The seed of all randomness of the run.
    pub seed: u64,
}

impl Default for TrainerSettings {
    /// Returns 16 groups at a time and 4 mini-batches, as in the paper, with recorded log-probabilities in the ratio.
    fn default() -> Self {
        Self {
            groups_per_step: 16,
            rollout: PoolSettings::default(),
            mode: RolloutMode::default(),
            dynamic_sampling: None,
            curriculum: Curriculum::default(),
            admission: Admission::default(),
            ratio_scope: RatioScope::default(),
            behavior: Behavior::default(),
            n_minibatches: 4,
            micro_batch_tokens: 4_096,
            clip: None,
            canary: None,
            schedule: Schedule::default(),
            max_grad_norm: 1.0,
            seed: 0,
        }
    }
}

/// The training loop: groups, credit, objective, optimiser, new weights.
///
/// [`step`](Self::step) is called until the run is over. The policy is created from the learner before the learner
/// moves into [`Parts`], and a learner that was trained before, in a warm start for example, is published first
/// ([who publishes](Learner#who-publishes)).
///
/// # Example
///
/// ```
/// use std::sync::Arc;
///
/// use turnwise_objective::{Clip, GroupAdvantage, GspoToken, LengthWeight};
/// use turnwise_rollout::{ChatAgents, Limits, PoolSettings, StopSignal};
/// use turnwise_testkit::{AlphabetRenderer, Echo, TabularModel};
/// use turnwise_training::{OutcomeCredit, Parts, Trainer, TrainerSettings, metric};
/// use turnwise_trajectory::Sampling;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let renderer = Arc::new(AlphabetRenderer::new("ab"));
/// let model = TabularModel::new(renderer.n_ids());
/// let parts = Parts {
///     tasks: Arc::new(vec![Echo::new(2, true)]),
///     agents: Arc::new(ChatAgents::new(renderer)),
///     rubric: None,
///     policy: Arc::new(model.clone()),
///     learner: model,
///     objective: Box::new(GspoToken { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Mean }),
///     credit: Box::new(OutcomeCredit { advantage: GroupAdvantage::MeanOnly }),
/// };
/// let limits = Limits { max_turn_tokens: 2, ..Limits::default() };
/// let rollout = PoolSettings { group_size: 4, limits, ..PoolSettings::default() };
/// let settings = TrainerSettings { groups_per_step: 2, rollout, ..TrainerSettings::default() };
/// let mut trainer = Trainer::new(parts, settings);
/// while trainer.next_step() < 3 {
///     let Some(report) = trainer.step(&StopSignal::never()).await? else { break };
///     assert!(report.metrics.get(metric::REWARD_MEAN).is_some());
/// }
/// assert_eq!(trainer.books().unaccounted(), 0);
/// # Ok(())
/// # }
/// ```
pub struct Trainer<L> {
    learning: Learning<L>,
    scheduler: Scheduler,
    settings: TrainerSettings,
    progress: TrainingProgress,
    rollouts: Meter,
}

/// The progress of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct TrainingProgress {
    step: u64,
    trained: u64,
    dropped: BTreeMap<String, u64>,
    skipped_in_row: u32,
    /// The measured spread of the importance ratio.
    #[serde(default)]
    spread: Spread,
}

/// The state of a trainer without its weights, as data.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TrainerSnapshot {
    progress: TrainingProgress,
    scheduler: SchedulerSnapshot,
}

impl TrainerSnapshot {
    /// Returns the suspended episodes and the groups that wait for them.
    #[must_use]
    pub fn pool(&self) -> &PoolSnapshot {
        &self.scheduler.pool
    }
}

impl<L: Learner> Trainer<L> {
    /// Creates a trainer at step 0.
    ///
    /// # Panics
    /// Panics if a setting that counts something is 0, or if rollouts overlap with training although nothing stale may
    /// train.
    #[must_use]
    pub fn new(parts: Parts<L>, settings: TrainerSettings) -> Self {
        assert!(
            settings.groups_per_step > 0 && settings.n_minibatches > 0,
            "groups_per_step and n_minibatches must be at least 1"
        );
        assert!(
            settings.mode != RolloutMode::Pipelined || settings.admission.max_staleness > 0,
            "pipelined rollouts are one version stale"
        );
        let Parts { tasks, agents, rubric, policy, learner, objective, credit } = parts;
        let rollouts = Meter::default();
        let pool = RolloutPool::new(tasks, agents, rubric, settings.rollout.clone(), settings.seed)
            .with_meter(rollouts.clone());
        let scheduler = Scheduler::new(pool, policy, scheduler_settings(&settings));
        let meter = Meter::default();
        let learning = Learning { learner, objective, credit, skipped_in_row: 0, meter };
        Self { learning, scheduler, settings, progress: TrainingProgress::default(), rollouts }
    }

    /// Gives the seats of an environment that the trained policy does not play to `opponent`; without it, the policy
    /// plays against itself. Set it before the first step or [`restore`](Self::restore).
    #[must_use]
    pub fn against(self, opponent: Opponent) -> Self {
        Self { scheduler: self.scheduler.against(opponent), ..self }
    }

    /// Runs the episodes of training elsewhere than in this process ([`RolloutPool::with_runner`]).
    #[must_use]
    pub fn with_runner(self, runner: Arc<dyn EpisodeRunner>) -> Self {
        Self { scheduler: self.scheduler.with_runner(runner), ..self }
    }

    /// Records the tool calls of all episodes in `store` ([`RolloutPool::with_ledger`]).
    #[must_use]
    pub fn with_ledger(self, store: Arc<dyn LedgerStore>) -> Self {
        Self { scheduler: self.scheduler.with_ledger(store), ..self }
    }

    /// Returns the progress of the current step's rollouts, and of its update. Asynchronous rollouts have no
    /// iterations, and show no progress.
    #[must_use]
    pub fn meters(&self) -> [Meter; 2] {
        [self.rollouts.clone(), self.learning.meter.clone()]
    }

    /// Returns the next step; 0 before the first.
    #[must_use]
    pub fn next_step(&self) -> u64 {
        self.progress.step
    }

    /// Returns the learner.
    pub fn learner(&mut self) -> &mut L {
        &mut self.learning.learner
    }

    /// Returns the engine that samples.
    #[must_use]
    pub fn policy(&self) -> &Arc<dyn Policy> {
        self.scheduler.policy()
    }

    /// Returns the books of the run.
    #[must_use]
    pub fn books(&self) -> Books {
        let ledger = self.scheduler.pool().ledger();
        let mut dropped = ledger.dropped.clone();
        for (reason, n) in &self.progress.dropped {
            *dropped.entry(reason.clone()).or_default() += n;
        }
        Books {
            dispatched: ledger.dispatched,
            trained: self.progress.trained,
            dropped,
            open: self.scheduler.pool().census(),
            ready: self.scheduler.n_ready(),
        }
    }

    /// Gathers finished groups, trains on them, and publishes the new weights.
    ///
    /// Returns `None` if `stop` was requested first: finished groups are kept, unfinished ones are suspended, and
    /// nothing is trained. A later stop takes effect in the next step: an update is never cut short, and neither is the
    /// round that a pipelined run plays during the update. In the reproducible modes a run that is stopped, saved and
    /// resumed ends with the weights of one that was not.
    ///
    /// # Errors
    /// If rollouts, credit or the learner fail.
    pub async fn step(&mut self, stop: &StopSignal) -> Result<Option<StepReport>, TrainError> {
        if stop.requested() {
            return Ok(None);
        }
        let started = Instant::now();
        let version = self.learning.learner.version();
        if !self.scheduler.gather(self.progress.step, version, stop).await? {
            return Ok(None);
        }
        let rollout_s = started.elapsed().as_secs_f64();
        let Gathered { groups, news, n_replaced } = self.scheduler.take();
        if let Some(error) = never_rendered(&news, &groups) {
            self.scheduler.repeat(self.progress.step);
            return Err(error.into());
        }
        let groups: Vec<Vec<Group>> = groups.into_iter().map(Group::into_seats).collect();
        let mut report = StepReport::new(self.progress.step, &news, &groups, n_replaced);
        let Trainable { trajectories: trainable, n_episodes } = self.admit(groups, &mut report)?;
        let clip = self.settings.clip.map(|auto| auto.range(&self.progress.spread));
        report.describe_clip(clip.filter(|clip| self.learning.objective.set_clip(*clip)));
        let update = self.optimise(&trainable, stop).await?;
        self.progress.spread.observe(update.log_ratio_std());
        self.publish(&trainable, n_episodes, &update, &mut report).await?;
        self.progress.trained += n_episodes;
        self.progress.step += 1;
        self.progress.skipped_in_row = self.learning.skipped_in_row;
        let books = self.books();
        if books.unaccounted() != 0 {
            return Err(TrainError::Unaccounted { books: Box::new(books) });
        }
        let timing = Timing { step_s: started.elapsed().as_secs_f64(), rollout_s };
        report.finish(&trainable, &update, books, timing);
        Ok(Some(report))
    }

    /// Returns the state without the weights. Suspends running episodes first.
    pub async fn snapshot(&mut self) -> TrainerSnapshot {
        self.scheduler.halt().await;
        TrainerSnapshot { progress: self.progress.clone(), scheduler: self.scheduler.snapshot() }
    }

    /// Restores a snapshot; [`Learner::load`] restores the weights.
    ///
    /// # Errors
    /// If a suspended episode cannot be restored.
    pub fn restore(&mut self, snapshot: TrainerSnapshot) -> Result<(), RestoreError> {
        self.learning.skipped_in_row = snapshot.progress.skipped_in_row;
        self.progress = snapshot.progress;
        self.scheduler.restore(snapshot.scheduler)
    }

    /// Selects the trajectories to train on, and assigns their credit. The seats of an episode are admitted and compared
    /// apart; an episode is trained on if one of them is.
    fn admit(
        &mut self,
        groups: Vec<Vec<Group>>,
        report: &mut StepReport,
    ) -> Result<Trainable, TrainError> {
        let version = self.learning.learner.version();
        let (mut trainable, mut left_out, mut n_episodes) = (Vec::new(), Vec::new(), 0);
        for group in groups {
            let seats = group.into_iter().map(|seat| self.settings.admission.admit(seat, version));
            let seats: Vec<Admitted> = seats.collect();
            for reason in verdicts(&seats).into_values() {
                match reason {
                    None => n_episodes += 1,
                    Some(reason) => {
                        let label = reason.label().to_owned();
                        *self.progress.dropped.entry(label).or_default() += 1;
                    }
                }
            }
            for admitted in seats {
                report.record_admission(&admitted);
                left_out.extend(admitted.left_out);
                trainable.push(admitted.members);
            }
        }
        if trainable.iter().all(Vec::is_empty) {
            report.untrained = left_out;
        }
        let mut groups: Vec<&mut [Trajectory]> =
            trainable.iter_mut().map(Vec::as_mut_slice).collect();
        report.credit = assign_batch_credit(&*self.learning.credit, &mut groups)?;
        Ok(Trainable { trajectories: trainable.into_iter().flatten().collect(), n_episodes })
    }

    /// Takes the optimiser steps, and runs the rollouts that the mode allows at the same time.
    async fn optimise(
        &mut self,
        trainable: &[Trajectory],
        stop: &StopSignal,
    ) -> Result<UpdateReport, TrainError> {
        let Self { learning, scheduler, settings, progress, .. } = self;
        let version = learning.learner.version();
        let update = learning.optimise(trainable, progress.step, settings);
        match settings.mode {
            RolloutMode::Synchronous => update.await,
            RolloutMode::Pipelined => {
                let round = scheduler.round_beside(progress.step + 1, version);
                tokio::join!(update, round).0
            }
            RolloutMode::Asynchronous => {
                tokio::select! {
                    biased;
                    update = update => update,
                    () = scheduler.keep_going(version, stop) => {
                        unreachable!("rollouts go on until the update is done")
                    }
                }
            }
        }
    }

    async fn publish(
        &mut self,
        trainable: &[Trajectory],
        n_episodes: u64,
        update: &UpdateReport,
        report: &mut StepReport,
    ) -> Result<(), TrainError> {
        if update.n_applied == 0 {
            return Ok(());
        }
        let policy = self.scheduler.policy().clone();
        let longest = self.settings.rollout.limits.max_context_tokens;
        let canary = self.settings.canary;
        let canary = self.learning.publish(&*policy, trainable, canary, longest).await?;
        report.canary = canary;
        let version = self.learning.learner.version();
        self.scheduler.published(version, n_episodes).await;
        Ok(())
    }
}

/// What a step trains on.
struct Trainable {
    trajectories: Vec<Trajectory>,
    /// The number of episodes; an episode has a trajectory for each seat that the trained policy played.
    n_episodes: u64,
}

/// Returns the reason why a step has no episode if none of them could be rendered, which holds for every later step too:
/// other faults may pass.
fn never_rendered(news: &Iteration, groups: &[Group]) -> Option<RolloutError> {
    let Faults { first, n } = news.faults.values().next().filter(|_| groups.is_empty())?;
    let is_alone = news.outcomes.len() == 1 && first.reason == InfraReason::Render;
    is_alone.then(|| RolloutError::AllBroke { n: *n as usize, first: first.clone() })
}

/// Returns for each member of a group why it does not train; `None` if it trains on one of its seats.
fn verdicts(seats: &[Admitted]) -> BTreeMap<u32, Option<DropReason>> {
    let mut verdicts = BTreeMap::new();
    for admitted in seats {
        for (member, reason) in &admitted.reasons {
            verdicts.entry(*member).or_insert(Some(*reason));
        }
    }
    for member in seats.iter().flat_map(|admitted| &admitted.members) {
        verdicts.insert(member.identity.member, None);
    }
    verdicts
}

fn scheduler_settings(settings: &TrainerSettings) -> SchedulerSettings {
    SchedulerSettings {
        mode: settings.mode,
        groups_per_step: settings.groups_per_step,
        max_staleness: settings.admission.max_staleness,
        drops_stale: settings.admission.stale == StaleTokens::Drop,
        dynamic_sampling: settings.dynamic_sampling,
        curriculum: settings.curriculum,
        seed: settings.seed,
    }
}

impl<L: fmt::Debug> fmt::Debug for Trainer<L> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Trainer")
            .field("learning", &self.learning)
            .field("pool", self.scheduler.pool())
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

impl<L> fmt::Debug for Parts<L> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Parts")
            .field("objective", &self.objective)
            .field("credit", &self.credit)
            .finish_non_exhaustive()
    }
}
