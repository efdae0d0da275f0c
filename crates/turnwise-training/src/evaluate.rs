use std::collections::BTreeMap;
use std::sync::Arc;

use turnwise_environment::{Random, Rubric, TaskSet, derive_seed};
use turnwise_rollout::{
    AgentFactory, Group, Limits, Meter, NO_TURN, Opponent, Policy, PoolSettings, RolloutError,
    RolloutPool, StopSignal,
};
use turnwise_trajectory::{GroupId, Trajectory};

use crate::SuccessRate;

/// The settings of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct EvaluationSettings {
    /// The number of episodes, each of another task; tasks repeat only if there are fewer tasks than episodes.
    pub episodes: usize,
    /// The seed of all randomness.
    pub seed: u64,
    /// Maximal number of episodes that run at the same time.
    pub max_concurrent: usize,
    /// The limits of an episode.
    pub limits: Limits,
    /// Maximal number of new attempts at a broken episode.
    pub max_retries: u32,
    /// The number of faults in a row that ends the evaluation.
    pub max_faults_in_row: u32,
    /// The share of bad rewards that ends the evaluation.
    pub max_bad_rewards: f64,
}

impl Default for EvaluationSettings {
    /// Returns 256 episodes, with the same tolerance for faults as training.
    fn default() -> Self {
        let PoolSettings {
            max_concurrent,
            limits,
            max_retries,
            max_faults_in_row,
            max_bad_rewards,
            ..
        } = PoolSettings::default();
        Self {
            episodes: 256,
            seed: 0,
            max_concurrent,
            limits,
            max_retries,
            max_faults_in_row,
            max_bad_rewards,
        }
    }
}

/// The subject of an evaluation: a policy and its tasks.
#[derive(Clone)]
pub struct Evaluated {
    /// The engine that samples.
    pub policy: Arc<dyn Policy>,
    /// The tasks, usually held out.
    pub tasks: Arc<dyn TaskSet>,
    /// The factory of agents, with renderer and sampling settings.
    pub agents: Arc<dyn AgentFactory>,
    /// The opponent on the seats that the policy does not play.
    pub opponent: Opponent,
    /// A rubric that scores episodes in addition to their environment.
    pub rubric: Option<Arc<dyn Rubric>>,
}

impl std::fmt::Debug for Evaluated {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Evaluated")
            .field("tasks", &self.tasks.name())
            .finish_non_exhaustive()
    }
}

/// The result of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The share of solved episodes.
    pub success: SuccessRate,
    /// The mean reward of the scored episodes.
    pub reward_mean: f64,
    /// The number of episodes that broke in spite of retries; they are not scored.
    pub n_broken: usize,
    /// The number of tasks that there are; with fewer than episodes, tasks were repeated.
    pub n_tasks: usize,
    /// The scored episodes in order; one trajectory for each seat that the policy played. An episode that ended before
    /// the policy's first turn is not among them.
    pub trajectories: Vec<Trajectory>,
}

/// Plays episodes and counts the solved ones. Returns `None` if `stop` was requested first. `meter` shows the number of
/// played episodes.
///
/// # Errors
/// If too many episodes in a row break, or all of them.
pub async fn evaluate(
    evaluated: &Evaluated,
    settings: &EvaluationSettings,
    stop: &StopSignal,
    meter: &Meter,
) -> Result<Option<Evaluation>, RolloutError> {
    let mut pool = RolloutPool::new(
        evaluated.tasks.clone(),
        evaluated.agents.clone(),
        evaluated.rubric.clone(),
        pool_settings(settings),
        settings.seed,
    )
    .with_meter(meter.clone())
    .against(evaluated.opponent.clone());
    for (episode, task) in
        order(evaluated.tasks.len(), settings.seed).take(settings.episodes).enumerate()
    {
        pool.start(GroupId(episode as u64), task);
    }
    let mut trajectories = Vec::with_capacity(settings.episodes);
    let (mut n_delivered, mut first_fault) = (0, None);
    while pool.n_waiting() > 0 {
        let iteration = pool.iterate(&evaluated.policy, stop).await?;
        if stop.requested() {
            return Ok(None);
        }
        n_delivered += iteration.groups.len();
        let fault = || iteration.faults.values().next().map(|faults| faults.first.clone());
        first_fault = first_fault.or_else(fault);
        let seats = iteration.groups.into_iter().flat_map(Group::into_seats);
        trajectories.extend(seats.flat_map(|seat| seat.members));
    }
    let n_undecided = pool.ledger().dropped.get(NO_TURN).copied().unwrap_or(0) as usize;
    let n_broken = settings.episodes - n_delivered - n_undecided;
    match first_fault {
        Some(first) if trajectories.is_empty() => {
            Err(RolloutError::AllBroke { n: n_broken, first })
        }
        _ => Ok(Some(summarise(trajectories, n_broken, evaluated.tasks.len()))),
    }
}

/// Iterates over tasks in a random order, repeatedly, so that the first ones are a random sample of all.
fn order(n: usize, seed: u64) -> impl Iterator<Item = usize> {
    let mut order: Vec<usize> = (0..n).collect();
    Random::new(derive_seed(seed, u64::MAX)).shuffle(&mut order);
    order.into_iter().cycle()
}

fn pool_settings(settings: &EvaluationSettings) -> PoolSettings {
    PoolSettings {
        group_size: 1,
        min_group_size: 1,
        max_concurrent: settings.max_concurrent,
        limits: settings.limits.clone(),
        max_retries: settings.max_retries,
        max_faults_in_row: settings.max_faults_in_row,
        max_bad_rewards: settings.max_bad_rewards,
        ..PoolSettings::default()
    }
}

fn summarise(trajectories: Vec<Trajectory>, n_broken: usize, n_tasks: usize) -> Evaluation {
    let mut tasks: BTreeMap<usize, Vec<bool>> = BTreeMap::new();
    for trajectory in &trajectories {
        tasks.entry(trajectory.identity.task_index).or_default().push(trajectory.solved);
    }
    let rewards: f64 = trajectories.iter().filter_map(Trajectory::reward).sum();
    Evaluation {
        success: SuccessRate::of(&tasks.into_values().collect::<Vec<_>>()),
        reward_mean: rewards / trajectories.len().max(1) as f64,
        n_broken,
        n_tasks,
        trajectories,
    }
}
