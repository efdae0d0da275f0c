use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::Serialize;
use turnwise_environment::{Action, Environment, EnvironmentError, Observation, Step};
use turnwise_rollout::{
    ChatAgents, Limits, Policy, PolicyError, PoolSettings, RolloutError, RolloutPool, Sample,
    SampleRequest, StopSignal,
};
use turnwise_trajectory::{GroupId, PolicyVersion, SampledToken, StopReason};

use crate::letters::{END, Letters};
use crate::usage::{Usage, usage};

/// The settings of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrchestrationSettings {
    /// The number of episodes that run side by side.
    pub episodes: usize,
    /// The number of turns of each episode; at least 2.
    pub turns: usize,
    /// The number of repetitions.
    pub repetitions: usize,
}

impl Default for OrchestrationSettings {
    /// Returns 10,000 episodes of 8 turns, five times.
    fn default() -> Self {
        Self { episodes: 10_000, turns: 8, repetitions: 5 }
    }
}

/// The cost of a turn without the engine. Each figure has one value for each repetition.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OrchestrationReport {
    /// The number of episodes that ran side by side.
    pub episodes: usize,
    /// The number of turns of each episode.
    pub turns: usize,
    /// Processor time of a turn, in microseconds.
    pub cpu_us_per_turn: Vec<f64>,
    /// Wall time of a turn, in microseconds.
    pub wall_us_per_turn: Vec<f64>,
    /// Processor time of a turn if every episode is suspended halfway and continues, in microseconds.
    pub suspended_cpu_us_per_turn: Vec<f64>,
    /// Resident memory of a suspended episode, in bytes.
    pub resident_bytes_per_suspended: Vec<f64>,
    /// The size of a suspended episode's snapshot as JSON, in bytes.
    pub serialised_bytes_per_suspended: f64,
}

/// The reason why a measurement failed.
#[derive(Debug, thiserror::Error)]
pub enum OrchestrationError {
    /// A setting is too small.
    #[error(
        "cannot measure with these settings: episodes and repetitions are at least 1, turns at least 2"
    )]
    Settings,
    /// The system does not report processor time in /proc.
    #[error("cannot read processor time and memory from /proc")]
    Usage,
    /// The pool failed.
    #[error("cannot run episodes")]
    Rollout(#[from] RolloutError),
    /// Some episodes did not finish.
    #[error("cannot run episodes: {finished} of {started} finished")]
    Unfinished {
        /// The number of finished episodes.
        finished: usize,
        /// The number of started episodes.
        started: usize,
    },
    /// The snapshot cannot be serialised.
    #[error("cannot serialise suspended episodes")]
    Snapshot(#[from] serde_json::Error),
}

/// Measures the cost of a turn in the real pool and the real chat agent: the engine answers at once with the same three
/// tokens, and the environment answers at once with the same text. Everything runs on the calling thread.
///
/// # Errors
/// If a figure cannot be measured.
///
/// # Panics
/// Panics if the runtime cannot be created.
pub fn measure_orchestration(
    settings: OrchestrationSettings,
) -> Result<OrchestrationReport, OrchestrationError> {
    let OrchestrationSettings { episodes, turns, repetitions } = settings;
    if episodes == 0 || turns < 2 || repetitions == 0 {
        return Err(OrchestrationError::Settings);
    }
    let mut report = OrchestrationReport { episodes, turns, ..OrchestrationReport::default() };
    let mut parked = Vec::new();
    for _ in 0..repetitions {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime on one thread needs nothing that can be missing");
        parked.push(runtime.block_on(park(settings, &mut report))?);
    }
    drop(parked);
    for _ in 0..repetitions {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime on one thread needs nothing that can be missing");
        runtime.block_on(through(settings, &mut report))?;
        runtime.block_on(suspended(settings, &mut report))?;
    }
    Ok(report)
}

/// Runs all turns without a suspension.
async fn through(
    settings: OrchestrationSettings,
    report: &mut OrchestrationReport,
) -> Result<(), OrchestrationError> {
    let mut pool = pool(settings, None);
    let (before, wall) = (read()?, Instant::now());
    run(&mut pool, settings).await?;
    let n_turns = (settings.episodes * settings.turns) as f64;
    let cpu = read()?.cpu.saturating_sub(before.cpu);
    report.cpu_us_per_turn.push(micros(cpu) / n_turns);
    report.wall_us_per_turn.push(micros(wall.elapsed()) / n_turns);
    Ok(())
}

/// Suspends every episode halfway and keeps it, because freed memory would hide the memory of the next ones.
async fn park(
    settings: OrchestrationSettings,
    report: &mut OrchestrationReport,
) -> Result<RolloutPool, OrchestrationError> {
    let half = settings.turns / 2 * ANSWER.len();
    let mut pool = pool(settings, Some((half * settings.episodes) as u64));
    let before = read()?;
    pool.start(GroupId(0), 0);
    pool.iterate(&policy(), &StopSignal::never()).await?;
    let resident = read()?.resident.saturating_sub(before.resident);
    report.resident_bytes_per_suspended.push(resident as f64 / pool.n_waiting().max(1) as f64);
    Ok(pool)
}

/// Runs all turns, with every episode suspended halfway.
async fn suspended(
    settings: OrchestrationSettings,
    report: &mut OrchestrationReport,
) -> Result<(), OrchestrationError> {
    let half = settings.turns / 2 * ANSWER.len();
    let mut pool = pool(settings, Some((half * settings.episodes) as u64));
    let before = read()?;
    pool.start(GroupId(0), 0);
    pool.iterate(&policy(), &StopSignal::never()).await?;
    let middle = read()?;
    let n = pool.n_waiting().max(1) as f64;
    let serialised = serde_json::to_vec(&pool.snapshot())?.len();
    report.serialised_bytes_per_suspended = serialised as f64 / n;
    let again = read()?;
    finish(&mut pool, settings).await?;
    let cpu = middle.cpu.saturating_sub(before.cpu) + read()?.cpu.saturating_sub(again.cpu);
    let n_turns = (settings.episodes * settings.turns) as f64;
    report.suspended_cpu_us_per_turn.push(micros(cpu) / n_turns);
    Ok(())
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn read() -> Result<Usage, OrchestrationError> {
    usage().ok_or(OrchestrationError::Usage)
}

fn policy() -> Arc<dyn Policy> {
    Arc::new(Instantly)
}

async fn run(
    pool: &mut RolloutPool,
    settings: OrchestrationSettings,
) -> Result<(), OrchestrationError> {
    pool.start(GroupId(0), 0);
    finish(pool, settings).await
}

async fn finish(
    pool: &mut RolloutPool,
    settings: OrchestrationSettings,
) -> Result<(), OrchestrationError> {
    let mut finished = 0;
    while pool.n_open() > 0 {
        let iteration = pool.iterate(&policy(), &StopSignal::never()).await?;
        finished += iteration
            .groups
            .iter()
            .flat_map(|group| &group.members)
            .filter(|member| member.turns.len() == settings.turns)
            .count();
    }
    if finished == settings.episodes {
        return Ok(());
    }
    Err(OrchestrationError::Unfinished { finished, started: settings.episodes })
}

fn pool(settings: OrchestrationSettings, tokens_per_iteration: Option<u64>) -> RolloutPool {
    let tasks = vec![Plain { turns: settings.turns, turn: 0 }];
    let agents = ChatAgents::new(Arc::new(Letters));
    let limits = Limits { max_turns: settings.turns + 1, ..Limits::default() };
    let pool = PoolSettings {
        group_size: settings.episodes,
        min_group_size: 1,
        max_concurrent: settings.episodes,
        tokens_per_iteration,
        limits,
        ..PoolSettings::default()
    };
    RolloutPool::new(Arc::new(tasks), Arc::new(agents), None, pool, 1)
}

/// The engine's answer in each turn.
const ANSWER: [u32; 3] = [1, 2, END];

/// An engine that answers at once.
struct Instantly;

#[async_trait]
impl Policy for Instantly {
    fn version(&self) -> PolicyVersion {
        PolicyVersion(0)
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let token = |id: &u32| SampledToken::new(*id, -1.0, PolicyVersion(0));
        let tokens: Vec<SampledToken> = ANSWER.iter().take(request.max_tokens).map(token).collect();
        let is_whole = tokens.len() == ANSWER.len();
        let stop = if is_whole { StopReason::EndOfTurn } else { StopReason::MaxTokens };
        Ok(Sample { tokens, stop, ..Sample::new("instant") })
    }
}

/// An environment that gives the same answer for a number of turns.
#[derive(Clone, Debug)]
struct Plain {
    turns: usize,
    turn: usize,
}

#[async_trait]
impl Environment for Plain {
    async fn reset(&mut self, _: u64) -> Result<Observation, EnvironmentError> {
        Ok("Begin.".into())
    }

    async fn step(&mut self, _: Action) -> Result<Step, EnvironmentError> {
        self.turn += 1;
        Ok(if self.turn == self.turns { Step::terminated(1.0) } else { Step::next("Go on.") })
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        Some(vec![self.turn as u8])
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), EnvironmentError> {
        let [turn] = snapshot else {
            return Err(EnvironmentError::new("cannot read a snapshot of one byte"));
        };
        self.turn = usize::from(*turn);
        Ok(())
    }
}
