use std::sync::Arc;

use serde::{Deserialize, Serialize};
use turnwise_environment::{Random, TaskSet, derive_seed};
use turnwise_objective::{Clip, GroupAdvantage, Gspo, GspoToken, LengthWeight, Objective, Std};
use turnwise_rollout::{ChatAgents, Limits, Policy, PoolSettings, Preface, StopSignal};
use turnwise_training::{
    Credit, DemonstrationError, Learner, LearnerError, OutcomeCredit, Parts, Row, Schedule,
    TrainError, Trainer, TrainerSettings, TurnBaselineCredit, TurnCredit, TurnIndexBiasedCredit,
    Update, demonstrate, imitate_step, metric,
};

use super::{LeverPuller, LeverTasks, Levers, Vocabulary};

/// The credit assignment of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arm {
    /// `Gspo` with `OutcomeCredit`: every token of the episode gets the advantage of the episode's reward.
    Outcome,
    /// `GspoToken` with `TurnIndexBiasedCredit`: every turn gets its own reward, compared with the same turn of the
    /// other episodes in units of that turn's standard deviation. The credit is biased if the policy decides when to
    /// stop; here it does not.
    TurnIndex,
    /// `GspoToken` with `TurnBaselineCredit`: every turn gets its own reward, compared with the same turn of the other
    /// episodes.
    TurnBaseline,
    /// `GspoToken` with `TurnCredit`: every turn gets its own reward, normalised over all turns of the group.
    Turn,
}

impl Arm {
    /// Returns the name used in the output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Outcome => "gspo, outcome credit",
            Self::TurnIndex => "gspo-token, per turn index",
            Self::TurnBaseline => "gspo-token, turn baseline",
            Self::Turn => "gspo-token, turn credit",
        }
    }

    fn objective(self, clip: Clip) -> Box<dyn Objective> {
        let length_weight = LengthWeight::Mean;
        match self {
            Self::Outcome => Box::new(Gspo { clip, length_weight }),
            Self::TurnIndex | Self::TurnBaseline | Self::Turn => {
                Box::new(GspoToken { clip, length_weight })
            }
        }
    }

    fn credit(self) -> Box<dyn Credit> {
        let advantage = GroupAdvantage::MeanStd { std: Std::Sample, epsilon: 1e-6 };
        match self {
            Self::Outcome => Box::new(OutcomeCredit { advantage }),
            Self::TurnIndex => Box::new(TurnIndexBiasedCredit { gamma: 0.0 }),
            Self::TurnBaseline => Box::new(TurnBaselineCredit { gamma: 0.0 }),
            Self::Turn => Box::new(TurnCredit {
                advantage,
                gamma: 0.0,
                outcome_weight: 0.0,
                turn_weight: 1.0,
            }),
        }
    }
}

/// The settings of the experiment; the same for every arm.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The task.
    pub levers: Levers,
    /// Groups of each step.
    pub groups_per_step: usize,
    /// Episodes of each group.
    pub group_size: usize,
    /// The learning rate of imitation and training.
    pub learning_rate: f64,
    /// The clip range of the sequence ratio.
    pub clip: Clip,
    /// Imitation steps before training, of 64 episodes each.
    pub imitation_steps: usize,
    /// The success rate that counts as solved, 0 to 1.
    pub threshold: f64,
    /// The number of last episodes over which the success rate is measured.
    pub window: usize,
    /// The number of episodes after which a run is given up.
    pub max_episodes: usize,
}

impl Default for Settings {
    /// Returns settings that count 0.9 over the last 256 episodes as solved.
    fn default() -> Self {
        Self {
            levers: Levers::default(),
            groups_per_step: 2,
            group_size: 8,
            learning_rate: 3e-3,
            clip: Clip::PAPER_GRPO,
            imitation_steps: 60,
            threshold: 0.9,
            window: 256,
            max_episodes: 20_000,
        }
    }
}

/// The result of one run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// The credit assignment.
    pub arm: Arm,
    /// The seed.
    pub seed: u64,
    /// Training episodes until the task was solved, or until the run was given up.
    pub episodes: usize,
    /// Whether the task was solved.
    pub solved: bool,
    /// The success rate over the first window of episodes.
    pub success_at_start: f64,
    /// The success rate over the last window of episodes.
    pub success_at_end: f64,
}

/// An error of the experiment.
#[derive(Debug, thiserror::Error)]
pub enum ExperimentError {
    /// The imitated player failed.
    #[error(transparent)]
    Demonstration(#[from] DemonstrationError),
    /// The learner failed during imitation.
    #[error(transparent)]
    Learner(#[from] LearnerError),
    /// The training loop failed.
    #[error(transparent)]
    Train(#[from] TrainError),
}

/// Trains a fresh model until the task is solved. Returns `None` if `stop` was requested first.
///
/// Two runs with the same seed and equal initial models differ only in `arm`.
///
/// # Errors
/// If imitation or training fails.
pub async fn run<L: Learner>(
    settings: &Settings,
    arm: Arm,
    seed: u64,
    (policy, mut learner): (Arc<dyn Policy>, L),
    stop: &StopSignal,
) -> Result<Option<RunResult>, ExperimentError> {
    imitate(settings, seed, &mut learner).await?;
    let mut trainer = trainer(settings, arm, seed, policy, learner);
    let per_step = settings.groups_per_step * settings.group_size;
    let n_steps = settings.window.div_ceil(per_step).max(1);
    let mut success = Vec::new();
    loop {
        let Some(report) = trainer.step(stop).await? else { return Ok(None) };
        success.push(report.metrics.get(metric::SUCCESS_RATE).unwrap_or(0.0));
        let mean = |steps: &[f64]| steps.iter().sum::<f64>() / steps.len() as f64;
        let last = mean(&success[success.len().saturating_sub(n_steps)..]);
        let episodes = success.len() * per_step;
        let solved = success.len() >= n_steps && last >= settings.threshold;
        if solved || episodes >= settings.max_episodes {
            let success_at_start = mean(&success[..n_steps.min(success.len())]);
            return Ok(Some(RunResult {
                arm,
                seed,
                episodes,
                solved,
                success_at_start,
                success_at_end: last,
            }));
        }
    }
}

// Labels of the seeds that are derived from a run's seed.
const IMITATION: u64 = 1;
const TRAINING: u64 = 2;

/// The number of episodes of one imitation step.
const IMITATED: usize = 64;

/// Teaches the form: one random lever, then a report of the right length.
async fn imitate(
    settings: &Settings,
    seed: u64,
    learner: &mut impl Learner,
) -> Result<(), ExperimentError> {
    let vocabulary = Vocabulary::new(&settings.levers);
    let tasks = LeverTasks(settings.levers);
    let mut random = Random::new(derive_seed(seed, IMITATION));
    for _ in 0..settings.imitation_steps {
        let mut rows: Vec<Row> = Vec::with_capacity(IMITATED);
        for _ in 0..IMITATED {
            let (task, seed) = (random.below(tasks.len() as u64) as usize, random.next_u64());
            let player = |_| Box::new(LeverPuller::new(settings.levers, seed)) as Box<_>;
            rows.extend(
                demonstrate(&tasks, task, &player, &vocabulary, &Preface::default(), 2, seed)
                    .await?
                    .rows,
            );
        }
        let update = Update { learning_rate: settings.learning_rate, max_grad_norm: 1.0 };
        imitate_step(learner, &rows, update).await?;
    }
    learner.publish().await?;
    Ok(())
}

fn trainer<L: Learner>(
    settings: &Settings,
    arm: Arm,
    seed: u64,
    policy: Arc<dyn Policy>,
    learner: L,
) -> Trainer<L> {
    let vocabulary = Vocabulary::new(&settings.levers);
    let parts = Parts {
        tasks: Arc::new(LeverTasks(settings.levers)),
        agents: Arc::new(ChatAgents::new(Arc::new(vocabulary))),
        rubric: None,
        policy,
        learner,
        objective: arm.objective(settings.clip),
        credit: arm.credit(),
    };
    let limits = Limits {
        max_turns: 2,
        max_turn_tokens: settings.levers.report_words + 1,
        ..Limits::default()
    };
    let settings = TrainerSettings {
        groups_per_step: settings.groups_per_step,
        rollout: PoolSettings {
            group_size: settings.group_size,
            limits,
            ..PoolSettings::default()
        },
        n_minibatches: 1,
        schedule: Schedule { learning_rate: settings.learning_rate, ..Schedule::default() },
        seed: derive_seed(seed, TRAINING),
        ..TrainerSettings::default()
    };
    Trainer::new(parts, settings)
}
