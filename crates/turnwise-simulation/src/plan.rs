use std::fmt;

use turnwise_environment::{Random, derive_seed};
use turnwise_rollout::{Limits, PoolSettings};
use turnwise_training::{
    Admission, Behavior, Correction, Curriculum, DynamicSampling, RatioScope, RolloutMode,
    StaleTokens, TrainerSettings, TruncatedEpisodes,
};

use crate::FaultKind;

/// The mode of a simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Faults throughout: no invariant may ever be violated.
    Safety,
    /// Faults stop after a while: from then on the run must finish.
    Liveness,
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Safety => "safety",
            Self::Liveness => "liveness",
        })
    }
}

/// How an environment is restored from a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestoreMethod {
    /// From its state.
    State,
    /// By replaying its actions.
    Replay,
    /// Never.
    Never,
}

/// Everything that a simulation derives from its seed before it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct SimulationPlan {
    /// The seed.
    pub seed: u64,
    /// Whether faults stop.
    pub mode: Mode,
    /// The number of optimiser steps of the run.
    pub steps: u64,
    /// In liveness mode, the step from which on there are no faults.
    pub quiet_step: u64,
    /// The trainer's settings.
    pub trainer: TrainerSettings,
    /// How each task's environment is restored.
    pub(crate) recoveries: Vec<RestoreMethod>,
    /// Whether a rubric scores in addition to the environments.
    pub has_rubric: bool,
    /// The frequency of each kind of fault where it can happen, in thousandths; kinds that are not listed never happen.
    pub faults: Vec<(FaultKind, u64)>,
    /// The frequency of new weights in the middle of a request, in thousandths of tokens.
    pub drift: u64,
    /// The frequency of halts during a step, in thousandths.
    pub halts: u64,
    /// The frequency of kills in the middle of a step, in thousandths.
    pub kills: u64,
    /// The frequency of restarts between two steps, in thousandths.
    pub restarts: u64,
}

impl SimulationPlan {
    /// Creates the plan of a seed.
    #[must_use]
    pub fn new(seed: u64, mode: Mode) -> Self {
        let mut random = Random::new(derive_seed(seed, mode as u64));
        let steps = random.between(3, 8);
        let trainer = trainer(&mut random);
        let n_tasks = random.between(1, 5);
        let recovery = |random: &mut Random| {
            random.one_of(&[
                RestoreMethod::State,
                RestoreMethod::State,
                RestoreMethod::Replay,
                RestoreMethod::Never,
            ])
        };
        Self {
            seed,
            mode,
            steps,
            quiet_step: steps / 2,
            trainer,
            recoveries: (0..n_tasks).map(|_| recovery(&mut random)).collect(),
            has_rubric: random.one_of(&[true, false]),
            faults: faults(&mut random),
            drift: random.one_of(&[0, 0, 5, 40]),
            halts: random.one_of(&[0, 0, 100, 300]),
            kills: random.one_of(&[0, 0, 100, 300]),
            restarts: random.one_of(&[0, 100, 300]),
        }
    }

    /// Returns the plan without faults and interruptions.
    #[must_use]
    pub fn undisturbed(self) -> Self {
        Self { faults: Vec::new(), drift: 0, halts: 0, kills: 0, restarts: 0, ..self }
    }

    /// Returns the number of episodes that can be open at once.
    pub(crate) fn max_open(&self) -> u64 {
        let groups = self.trainer.groups_per_step as u64 * (u64::from(self.staleness()) + 1);
        groups * self.trainer.rollout.group_size as u64
    }

    /// Returns whether the process can restart, after which an episode may be at an attempt that no retry made.
    pub(crate) fn restarts(&self) -> bool {
        self.kills > 0 || self.restarts > 0 || !self.faults.is_empty()
    }

    pub(crate) fn staleness(&self) -> u32 {
        self.trainer.admission.max_staleness
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.trainer.rollout.limits
    }
}

impl fmt::Display for SimulationPlan {
    /// Formats the plan on one line.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self:?}")
    }
}

fn trainer(random: &mut Random) -> TrainerSettings {
    let admission = Admission {
        max_staleness: random.between(0, 4) as u32,
        stale: random.one_of(&[StaleTokens::Drop, StaleTokens::Mask]),
        truncated: random.one_of(&[
            TruncatedEpisodes::Keep,
            TruncatedEpisodes::Penalise(-0.5),
            TruncatedEpisodes::Mask,
        ]),
        keep_zero_variance: random.one_of(&[true, false]),
        ..Admission::default()
    };
    let mode = random.one_of(&[
        RolloutMode::Synchronous,
        RolloutMode::Pipelined,
        RolloutMode::Asynchronous,
        RolloutMode::Asynchronous,
    ]);
    let sampling = DynamicSampling { max_groups: random.between(0, 4), max_seconds: 300.0 };
    let by_success = Curriculum::SuccessRate { low: 0.2, high: 0.8, keep: 0.2 };
    TrainerSettings {
        mode: if admission.max_staleness == 0 { RolloutMode::Synchronous } else { mode },
        dynamic_sampling: random.one_of(&[None, None, Some(sampling)]),
        curriculum: random.one_of(&[Curriculum::Epochs, by_success]),
        groups_per_step: random.between(1, 4) as usize,
        rollout: pool(random),
        admission,
        ratio_scope: random.one_of(&[
            RatioScope::Trajectory,
            RatioScope::Branch,
            RatioScope::Turn,
            RatioScope::VersionSegment,
        ]),
        behavior: random.one_of(&[
            Behavior::Recorded,
            Behavior::Recorded,
            Behavior::Recomputed(Correction::truncated(2.0)),
        ]),
        n_minibatches: random.between(1, 3) as usize,
        micro_batch_tokens: random.one_of(&[1, 64, 4096]),
        seed: random.next_u64(),
        ..TrainerSettings::default()
    }
}

fn pool(random: &mut Random) -> PoolSettings {
    let group_size = random.between(1, 6);
    PoolSettings {
        group_size: group_size as usize,
        min_group_size: random.between(1, group_size) as usize,
        max_concurrent: random.one_of(&[1, 2, 5, 64]),
        tokens_per_iteration: random.one_of(&[None, None, Some(1), Some(40), Some(200)]),
        max_retries: random.between(0, 2) as u32,
        max_faults_in_row: random.between(4, 30) as u32,
        max_bad_rewards: random.one_of(&[0.02, 1.0]),
        limits: limits(random),
        ..PoolSettings::default()
    }
}

fn limits(random: &mut Random) -> Limits {
    Limits {
        max_turns: random.between(1, 5) as usize,
        max_turn_tokens: random.between(1, 8) as usize,
        max_sampled_tokens: random.between(4, 30) as usize,
        max_context_tokens: random.between(30, 200) as usize,
        max_faults: random.between(0, 3) as u32,
        environment_timeout_s: random.between(5, 60) as f64,
        engine_timeout_s: random.between(10, 60) as f64,
        episode_timeout_s: random.between(90, 400) as f64,
        ..Limits::default()
    }
}

/// Chooses a few kinds of fault for each seed, so that each kind also occurs in an otherwise healthy world.
fn faults(random: &mut Random) -> Vec<(FaultKind, u64)> {
    let share = random.one_of(&[0, 1, 2, 5, 10]);
    let mut faults = Vec::new();
    for kind in FaultKind::ALL {
        if random.below(10) < share {
            faults.push((kind, random.one_of(&[3, 15, 60])));
        }
    }
    faults
}

/// Random choices of plans.
pub(crate) trait Draws {
    /// Returns a number from `low` to `high`, both included.
    fn between(&mut self, low: u64, high: u64) -> u64;

    /// Returns one of the given values.
    fn one_of<T: Clone>(&mut self, things: &[T]) -> T;
}

impl Draws for Random {
    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    fn one_of<T: Clone>(&mut self, things: &[T]) -> T {
        things[self.below(things.len() as u64) as usize].clone()
    }
}
