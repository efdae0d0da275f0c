use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use turnwise_environment::{Random, Rubric, TaskSet, derive_seed};
use turnwise_objective::{AdvantageError, Objective};
use turnwise_rollout::{
    AgentFactory, Group, Iteration, Policy, PoolSettings, PoolSnapshot, RestoreError, RolloutError,
    RolloutPool, StopSignal,
};
use turnwise_trajectory::{GroupId, Trajectory};

use crate::admission::Admission;
use crate::policy_gradient::{ObjectiveReport, accumulate};
use crate::proximal::{Behavior, recompute};
use crate::report::{StepReport, Timing, UpdateReport};
use crate::{
    Batch, BatchError, Credit, Learner, LearnerError, RatioScope, Schedule, Update,
    assign_batch_credit,
};

/// The parts of a training run that can be chosen freely.
pub struct Parts<L> {
    /// What is trained on.
    pub tasks: Arc<dyn TaskSet>,
    /// How conversations become tokens.
    pub agents: Arc<dyn AgentFactory>,
    /// Scores episodes beside their environment.
    pub rubric: Option<Arc<dyn Rubric>>,
    /// The engine that draws.
    pub policy: Arc<dyn Policy>,
    /// The model that learns.
    pub learner: L,
    /// The loss.
    pub objective: Box<dyn Objective>,
    /// Who gets credit for a reward.
    pub credit: Box<dyn Credit>,
}

/// How it is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainerSettings {
    /// Groups started at each step. Where episodes are suspended, groups of earlier steps are open beside them.
    pub groups_per_step: usize,
    /// How they are run.
    pub rollout: PoolSettings,
    /// What may train.
    pub admission: Admission,
    /// Which tokens share a ratio.
    pub ratio_scope: RatioScope,
    /// Which log-probabilities stand in the ratio's denominator.
    pub behavior: Behavior,
    /// Optimiser steps for each batch of rollouts; 4 in the paper (section 5.1).
    pub n_minibatches: usize,
    /// Padded tokens that go through the model at once.
    pub micro_batch_tokens: usize,
    /// The learning rate.
    pub schedule: Schedule,
    /// Where gradients are clipped.
    pub max_grad_norm: f64,
    /// All randomness of the run derives from it.
    pub seed: u64,
}

impl Default for TrainerSettings {
    /// 16 groups at a time and 4 mini-batches, as in the paper; recorded log-probabilities in the ratio.
    fn default() -> Self {
        Self {
            groups_per_step: 16,
            rollout: PoolSettings::default(),
            admission: Admission::default(),
            ratio_scope: RatioScope::default(),
            behavior: Behavior::default(),
            n_minibatches: 4,
            micro_batch_tokens: 16_384,
            schedule: Schedule::default(),
            max_grad_norm: 1.0,
            seed: 0,
        }
    }
}

/// The loop: groups, credit, objective, optimiser, new weights.
pub struct Trainer<L> {
    learner: L,
    policy: Arc<dyn Policy>,
    pool: RolloutPool,
    objective: Box<dyn Objective>,
    credit: Box<dyn Credit>,
    settings: TrainerSettings,
    progress: Progress,
    /// Groups that were finished when somebody asked for a halt; they are trained on first when the run goes on.
    ready: Vec<Group>,
}

/// How far a run has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Progress {
    step: u64,
    /// Steps whose groups have been started: one more than `step` where a halt came between that and the training.
    steps_started: u64,
    groups_started: u64,
    trained: u64,
    dropped: BTreeMap<String, u64>,
    skipped_in_row: u32,
}

/// Everything of a trainer but its weights, on its way to disk.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TrainerSnapshot {
    progress: Progress,
    /// Suspended episodes and groups that wait for them.
    pub pool: PoolSnapshot,
    ready: Vec<(GroupId, Vec<Trajectory>)>,
}

impl<L: Learner> Trainer<L> {
    /// A trainer at step 0.
    ///
    /// # Panics
    /// When a setting that counts something is 0.
    #[must_use]
    pub fn new(parts: Parts<L>, settings: TrainerSettings) -> Self {
        assert!(
            settings.groups_per_step > 0 && settings.n_minibatches > 0,
            "a step has groups and mini-batches"
        );
        let Parts { tasks, agents, rubric, policy, learner, objective, credit } = parts;
        let pool = RolloutPool::new(tasks, agents, rubric, settings.rollout.clone(), settings.seed);
        let progress = Progress::default();
        Self { learner, policy, pool, objective, credit, settings, progress, ready: Vec::new() }
    }

    /// The step that comes next; 0 before the first.
    #[must_use]
    pub fn next_step(&self) -> u64 {
        self.progress.step
    }

    /// The model that learns.
    pub fn learner(&mut self) -> &mut L {
        &mut self.learner
    }

    /// The engine that draws.
    #[must_use]
    pub fn policy(&self) -> &Arc<dyn Policy> {
        &self.policy
    }

    /// Runs one iteration of rollouts and trains on the groups it finished.
    ///
    /// `None` when `stop` came first: what was finished is kept, what was not is suspended, and nothing was trained.
    ///
    /// # Errors
    /// When rollouts, credit or the learner cannot go on.
    pub async fn step(&mut self, stop: &StopSignal) -> Result<Option<StepReport>, TrainError> {
        let started = Instant::now();
        self.start_groups();
        let iteration = self.roll_out(stop).await?;
        let rollout_s = started.elapsed().as_secs_f64();
        if stop.requested() {
            self.ready.extend(iteration.groups);
            return Ok(None);
        }
        let (iteration, groups) = self.take_groups(iteration);
        let mut report = StepReport::new(self.progress.step, &iteration, &groups);
        let trainable = self.admit(groups, &mut report)?;
        let update = self.update(&trainable).await?;
        self.progress.trained += trainable.len() as u64;
        self.progress.step += 1;
        self.check_books()?;
        let timing = Timing { step_s: started.elapsed().as_secs_f64(), rollout_s };
        report.finish(&trainable, &update, timing);
        Ok(Some(report))
    }

    /// Everything but the weights.
    #[must_use]
    pub fn snapshot(&self) -> TrainerSnapshot {
        TrainerSnapshot {
            progress: self.progress.clone(),
            pool: self.pool.snapshot(),
            ready: self.ready.iter().map(|group| (group.id, group.members.clone())).collect(),
        }
    }

    /// Goes on where a snapshot was taken; the weights are restored by [`Learner::load`].
    ///
    /// # Errors
    /// When a suspended episode cannot be restored.
    pub fn restore(&mut self, snapshot: TrainerSnapshot) -> Result<(), RestoreError> {
        self.progress = snapshot.progress;
        self.ready =
            snapshot.ready.into_iter().map(|(id, members)| Group { id, members }).collect();
        self.pool.restore(snapshot.pool)
    }

    /// Iterations until one finishes a group. With a small token budget that can take several; each brings every episode at
    /// least one token further.
    async fn roll_out(&mut self, stop: &StopSignal) -> Result<Iteration, TrainError> {
        let mut rolled_out = Iteration::default();
        loop {
            rolled_out.absorb(self.pool.iterate(&self.policy, stop).await?);
            let has_work = !rolled_out.groups.is_empty() || !self.ready.is_empty();
            if has_work || self.pool.n_waiting() == 0 || stop.requested() {
                return Ok(rolled_out);
            }
        }
    }

    /// Starts the step's groups, as far as staleness admits them: what is open may not be more than can be trained on before
    /// it is too old (the form of AReaL's admission, counted in groups).
    fn start_groups(&mut self) {
        if self.progress.steps_started > self.progress.step {
            return;
        }
        self.progress.steps_started = self.progress.step + 1;
        let per_step = self.settings.groups_per_step;
        let most = per_step.saturating_mul(self.settings.admission.max_staleness as usize + 1);
        let capacity = most.saturating_sub(self.pool.n_open() + self.ready.len());
        for _ in 0..per_step.min(capacity) {
            let number = self.progress.groups_started;
            self.pool.start(GroupId(number), self.task_of(number));
            self.progress.groups_started += 1;
        }
    }

    /// The task of a group: every epoch goes through all tasks once, in an order of its own.
    fn task_of(&self, number: u64) -> usize {
        let n = self.pool.tasks().len() as u64;
        let (epoch, place) = (number / n, number % n);
        let mut order: Vec<usize> = (0..n as usize).collect();
        Random::new(derive_seed(derive_seed(self.settings.seed, TASK_ORDER), epoch))
            .shuffle(&mut order);
        order[place as usize]
    }

    fn take_groups(&mut self, mut iteration: Iteration) -> (Iteration, Vec<Group>) {
        let mut groups = std::mem::take(&mut self.ready);
        groups.append(&mut iteration.groups);
        // A run that was halted in between trains in the order of one that was not.
        groups.sort_by_key(|group| group.id);
        (iteration, groups)
    }

    /// The members that train, with their credit.
    fn admit(
        &mut self,
        groups: Vec<Group>,
        report: &mut StepReport,
    ) -> Result<Vec<Trajectory>, TrainError> {
        let mut trainable = Vec::new();
        for group in groups {
            let admitted = self.settings.admission.admit(group, self.learner.version());
            for (reason, n) in admitted.dropped {
                *self.progress.dropped.entry(reason.to_owned()).or_default() += n;
                report.n_dropped += n;
            }
            trainable.push(admitted.members);
        }
        let mut groups: Vec<&mut [Trajectory]> =
            trainable.iter_mut().map(Vec::as_mut_slice).collect();
        assign_batch_credit(&*self.credit, &mut groups)?;
        Ok(trainable.into_iter().flatten().collect())
    }

    /// The optimiser steps of one batch of rollouts, and the publication of what they made.
    async fn update(&mut self, trajectories: &[Trajectory]) -> Result<UpdateReport, TrainError> {
        let update = Update {
            learning_rate: self.settings.schedule.at(self.progress.step),
            max_grad_norm: self.settings.max_grad_norm,
        };
        let mut report = UpdateReport::new(update.learning_rate, self.learner.version());
        let batches = self.minibatches(trajectories).await?;
        for (index, batch) in batches.iter().enumerate() {
            let objective = accumulate(
                &mut self.learner,
                &*self.objective,
                batch,
                self.settings.micro_batch_tokens,
                index == 0 && self.settings.behavior == Behavior::Recorded,
            )
            .await?;
            let updated = self.learner.step(update).await?;
            self.count_skipped(updated.applied, &objective)?;
            report.record(&objective, updated);
        }
        if report.n_applied > 0 {
            self.learner.publish().await?;
        }
        Ok(report)
    }

    /// The batch in mini-batches of whole trajectories, shuffled, because neighbours come from one group.
    async fn minibatches(&mut self, trajectories: &[Trajectory]) -> Result<Vec<Batch>, TrainError> {
        let mut order: Vec<&Trajectory> = trajectories.iter().collect();
        Random::new(derive_seed(derive_seed(self.settings.seed, MINIBATCHES), self.progress.step))
            .shuffle(&mut order);
        let size = order.len().div_ceil(self.settings.n_minibatches).max(1);
        let mut batches = Vec::new();
        for chunk in order.chunks_mut(size) {
            // Rows of like length share a micro-batch, so that little of it is padding.
            chunk.sort_by_key(|trajectory| trajectory.n_sampled());
            let mut batch = Batch::new(chunk.iter().copied(), self.settings.ratio_scope)?;
            if let Behavior::Recomputed { max_weight } = self.settings.behavior {
                recompute(&mut batch, &mut self.learner, max_weight).await?;
            }
            if batch.n_targets() > 0 {
                batches.push(batch);
            }
        }
        Ok(batches)
    }

    fn count_skipped(
        &mut self,
        applied: bool,
        objective: &ObjectiveReport,
    ) -> Result<(), TrainError> {
        if applied {
            self.progress.skipped_in_row = 0;
            return Ok(());
        }
        self.progress.skipped_in_row += 1;
        tracing::warn!(
            step = self.progress.step,
            loss = objective.loss,
            "skipped an update: its gradient was not finite"
        );
        if self.progress.skipped_in_row >= MAX_SKIPPED_IN_ROW {
            return Err(TrainError::NotFinite { step: self.progress.step });
        }
        Ok(())
    }

    /// Every episode that was started has been trained, was dropped for a reason, or is still open.
    fn check_books(&self) -> Result<(), TrainError> {
        let ledger = self.pool.ledger();
        let settled = self.progress.trained + self.progress.dropped.values().sum::<u64>();
        if ledger.delivered == settled {
            return Ok(());
        }
        Err(TrainError::Books { delivered: ledger.delivered, settled })
    }
}

/// Skipped updates in a row that stop a run.
const MAX_SKIPPED_IN_ROW: u32 = 3;

// Labels for seeds that derive from the run's; the pool uses group numbers, which never reach these.
const TASK_ORDER: u64 = u64::MAX;
const MINIBATCHES: u64 = u64::MAX - 1;

impl<L: fmt::Debug> fmt::Debug for Trainer<L> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Trainer")
            .field("learner", &self.learner)
            .field("pool", &self.pool)
            .field("objective", &self.objective)
            .field("credit", &self.credit)
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

/// Why training cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Rollouts.
    #[error(transparent)]
    Rollout(#[from] RolloutError),
    /// The learner, or the objective inside it.
    #[error(transparent)]
    Learner(#[from] LearnerError),
    /// Credit.
    #[error("assign credit")]
    Credit(#[from] AdvantageError),
    /// A token without credit.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The gradient was not finite several times in a row.
    #[error(
        "train: the gradient was not finite in {MAX_SKIPPED_IN_ROW} updates in a row, the last at step {step}"
    )]
    NotFinite {
        /// The step.
        step: u64,
    },
    /// Episodes got lost: a bug.
    #[error(
        "account for every episode: {delivered} were delivered, {settled} were trained or dropped"
    )]
    Books {
        /// What rollouts handed over.
        delivered: u64,
        /// What training knows of.
        settled: u64,
    },
}
