//! A trainer whose episodes run on workers: what a step takes with one to a thousand of them, and who waits for whom.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};
use turnwise_environment::TaskSet;
use turnwise_rollout::{
    AgentFactory, Allowance, ChatAgents, Deadline, Episode, EpisodeRunner, EpisodeSnapshot, Policy,
    PolicyError, Progress, Sample, SampleRequest, SessionId, StopSignal, uniform_at,
};
use turnwise_training::{RolloutMode, Trainer, metric};
use turnwise_trajectory::{PolicyVersion, SampledToken, StopReason};

use crate::letters::{END, Letters};
use crate::timed::{Clock, TimedWork, exponential};

/// A trainer, its engine and its workers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ClusterSettings {
    /// The number of workers.
    pub workers: usize,
    /// The episodes that a worker runs at a time.
    pub slots: usize,
    /// The number of groups of a step.
    pub groups: usize,
    /// The number of episodes of a group.
    pub group: usize,
    /// The number of turns of an episode.
    pub turns: usize,
    /// The tokens of a task's prompt.
    pub prompt: usize,
    /// The mean number of tokens of a turn; they are distributed exponentially.
    pub turn_tokens: usize,
    /// The tokens that the environment adds between turns.
    pub observation: usize,
    /// The mean seconds of the environment's answer; they are distributed exponentially.
    pub environment_s: f64,
    /// The tokens per second of one request that the engine has to itself.
    pub request_tokens_s: f64,
    /// The tokens per second of all requests together, those of prompts included.
    pub engine_tokens_s: f64,
    /// The tokens per second of training.
    pub training_tokens_s: f64,
    /// The seconds until the engine serves new weights.
    pub publish_s: f64,
    /// The largest staleness that trains, in versions.
    pub max_staleness: u32,
    /// The processor seconds of the trainer's process for a turn: a request to sample, a report, and a share of a lease.
    pub hub_turn_s: f64,
    /// The threads that serve workers.
    pub hub_threads: usize,
    /// The seconds that a turn's messages take beyond that.
    pub message_s: f64,
    /// The mean seconds after which a worker is killed; infinity for never.
    pub lifetime_s: f64,
    /// The seconds after which the episodes of a silent worker go on elsewhere.
    pub lease_s: f64,
    /// The number of steps that are averaged.
    pub steps: u64,
}

impl ClusterSettings {
    fn work(&self) -> TimedWork {
        TimedWork {
            groups: self.groups,
            group: self.group,
            turns: self.turns,
            prompt: self.prompt,
            turn_tokens: self.turn_tokens,
            observation: self.observation,
            environment_s: self.environment_s,
            engine_step_s: 1.0 / self.request_tokens_s,
            engine_token_s: 1.0 / self.engine_tokens_s,
            training_token_s: 1.0 / self.training_tokens_s,
            publish_s: self.publish_s,
        }
    }

    fn check(&self) -> Result<(), String> {
        let counts = [self.workers, self.slots, self.groups, self.turns, self.turn_tokens];
        if counts.contains(&0) || self.group < 2 || self.hub_threads == 0 || self.steps == 0 {
            return Err("a step has workers, groups of two episodes, turns and tokens".to_owned());
        }
        let rates = [self.request_tokens_s, self.engine_tokens_s, self.training_tokens_s];
        let is_rate = |rate: &f64| rate.is_finite() && *rate > 0.0;
        let times = [self.environment_s, self.publish_s, self.hub_turn_s, self.message_s];
        let is_time = |time: &f64| (0.0..=MAX_S).contains(time);
        if !rates.iter().all(is_rate) || !times.iter().chain([&self.lease_s]).all(is_time) {
            return Err("rates are above 0, and times from 0 to a day".to_owned());
        }
        if self.lifetime_s.is_nan() || self.lifetime_s <= 0.0 {
            return Err("a worker lives longer than 0 seconds".to_owned());
        }
        Ok(())
    }
}

/// The longest time of a part.
const MAX_S: f64 = 86_400.0;

/// What a step takes on average, and who waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ClusterReport {
    /// The seconds of a step.
    pub step_s: f64,
    /// The episodes per second that are trained.
    pub episodes_s: f64,
    /// The share of the time in which the learner waits.
    pub trainer_idle: f64,
    /// The mean age of a trained token, in versions.
    pub staleness: f64,
    /// The largest age of a trained token.
    pub max_staleness: f64,
    /// The tokens that the engine computes, as a share of those that it can.
    pub engine_busy: f64,
    /// The share of the time in which all threads that serve workers compute.
    pub hub_busy: f64,
    /// The share of the workers' places that have an episode.
    pub slots_busy: f64,
    /// How often an episode was taken from a killed worker.
    pub lost: u64,
}

/// Simulates training steps in virtual time: the real trainer and pool, over workers, engine and learner that take time.
///
/// # Errors
/// When the settings have no work in them, or the trainer fails.
///
/// # Panics
/// When the runtime cannot be created.
pub fn simulate_cluster(settings: ClusterSettings) -> Result<ClusterReport, String> {
    settings.check()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime on one thread needs nothing that can be missing");
    runtime.block_on(run(settings))
}

/// The steps in which the trainer learns how far rollouts have to be ahead.
const WARM_UP: u64 = 16;

async fn run(settings: ClusterSettings) -> Result<ClusterReport, String> {
    let clock = Arc::new(Clock::default());
    let (mut trainer, cluster) = trainer(&settings, &clock);
    let (mut began, mut before) = (Instant::now(), Sums::default());
    let (mut staleness, mut max_staleness) = (0.0, 0.0_f64);
    for step in 0..WARM_UP + settings.steps {
        if step == WARM_UP {
            (began, before) = (Instant::now(), cluster.sums(&clock));
        }
        let report = Box::pin(trainer.step(&StopSignal::never())).await;
        let report = report.map_err(|error| error.to_string())?.ok_or("a step was stopped")?;
        if step >= WARM_UP {
            staleness += report.metrics.get(metric::STALENESS_MEAN).unwrap_or_default();
            let most = report.metrics.get(metric::STALENESS_MAX).unwrap_or_default();
            max_staleness = max_staleness.max(most);
        }
    }
    let (seconds, after) = (began.elapsed().as_secs_f64(), cluster.sums(&clock));
    let steps = settings.steps as f64;
    let share = |of: fn(&Sums) -> f64, places: usize| {
        ((of(&after) - of(&before)) / seconds / places as f64).min(1.0)
    };
    Ok(ClusterReport {
        step_s: seconds / steps,
        episodes_s: steps * (settings.groups * settings.group) as f64 / seconds,
        trainer_idle: 1.0 - share(|sums| sums.learner, 1),
        staleness: staleness / steps,
        max_staleness,
        engine_busy: share(|sums| sums.engine, 1),
        hub_busy: share(|sums| sums.hub, settings.hub_threads),
        slots_busy: share(|sums| sums.slots, settings.workers * settings.slots),
        lost: after.lost - before.lost,
    })
}

fn trainer(
    settings: &ClusterSettings,
    clock: &Arc<Clock>,
) -> (Trainer<crate::timed::TimedLearner>, Arc<Cluster>) {
    let work = settings.work();
    let mut of_trainer = work.trainer(RolloutMode::Asynchronous);
    of_trainer.admission.max_staleness = settings.max_staleness;
    of_trainer.rollout.max_concurrent = settings.workers * settings.slots;
    let cluster = Arc::new(Cluster {
        settings: *settings,
        tasks: Arc::new(work.tasks()),
        agents: Arc::new(ChatAgents::new(Arc::new(Letters))),
        slots: Semaphore::new(settings.workers * settings.slots),
        hub: Arc::new(Hub::new(settings)),
        used: Mutex::default(),
        lives: AtomicU64::new(0),
        lost: AtomicU64::new(0),
    });
    let trainer = Trainer::new(work.parts(clock), of_trainer).with_runner(cluster.clone());
    (trainer, cluster)
}

/// Seconds of work since the beginning.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    engine: f64,
    learner: f64,
    hub: f64,
    slots: f64,
    lost: u64,
}

/// The workers, as the trainer's pool sees them.
struct Cluster {
    settings: ClusterSettings,
    tasks: Arc<dyn TaskSet>,
    agents: Arc<dyn AgentFactory>,
    /// The free places of all workers.
    slots: Semaphore,
    hub: Arc<Hub>,
    /// The seconds for which places were taken, of episodes that have left theirs.
    used: Mutex<f64>,
    /// How many lives of workers were drawn.
    lives: AtomicU64,
    lost: AtomicU64,
}

/// The seed of the lives of workers.
const LIVES: u64 = 0x6c69_7665;

impl Cluster {
    fn sums(&self, clock: &Clock) -> Sums {
        let [_, learner] = clock.busy();
        let slots = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = self.lost.load(Ordering::Relaxed);
        Sums { engine: clock.load(), learner, hub: self.hub.busy(), slots, lost }
    }

    /// Draws how long the worker of an episode still lives.
    fn life(&self) -> Option<Duration> {
        if self.settings.lifetime_s.is_infinite() {
            return None;
        }
        let uniform = uniform_at(LIVES, self.lives.fetch_add(1, Ordering::Relaxed));
        Duration::try_from_secs_f64(exponential(uniform) * self.settings.lifetime_s).ok()
    }

    /// Advances an episode on one worker; `Err` has its last reported state if the worker is killed.
    async fn on_worker(
        &self,
        episode: Episode,
        policy: &Arc<dyn Policy>,
        allowance: &Allowance,
    ) -> Result<Progress, Option<EpisodeSnapshot>> {
        let mut reported = episode.snapshot();
        let mut watcher = |episode: &Episode| reported = episode.snapshot();
        let through = Through { engine: policy.clone(), hub: self.hub.clone() };
        let advancing =
            episode.advance_watched(&through, allowance, Deadline::never(), &mut watcher);
        let life = self.life();
        let killed = async {
            match life {
                Some(life) => sleep(life).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            progress = advancing => return Ok(progress),
            () = killed => {}
        }
        Err(reported)
    }
}

#[async_trait]
impl EpisodeRunner for Cluster {
    async fn advance(
        &self,
        mut episode: Episode,
        policy: &Arc<dyn Policy>,
        allowance: &Allowance,
    ) -> Progress {
        loop {
            let slot = tokio::select! {
                slot = self.slots.acquire() => slot,
                () = allowance.stop.wait() => return Progress::Suspended(episode),
            };
            let began = Instant::now();
            let ended = self.on_worker(episode, policy, allowance).await;
            *self.used.lock().unwrap_or_else(PoisonError::into_inner) +=
                began.elapsed().as_secs_f64();
            drop(slot);
            let reported = match ended {
                Ok(progress) => return progress,
                Err(reported) => reported.expect("its environment takes snapshots"),
            };
            self.lost.fetch_add(1, Ordering::Relaxed);
            // Nobody notices before; the worker's place is taken by a new worker.
            sleep(Duration::from_secs_f64(self.settings.lease_s)).await;
            let restored = Episode::restore(reported, &*self.tasks, &*self.agents);
            episode = restored.expect("an own snapshot is restored");
        }
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Cluster").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// The part of the trainer's process that serves workers: one message after the other.
#[derive(Debug)]
struct Hub {
    turn_s: f64,
    threads: f64,
    message: Duration,
    state: Mutex<HubQueue>,
}

#[derive(Debug)]
struct HubQueue {
    free_at: Instant,
    busy: f64,
}

impl Hub {
    fn new(settings: &ClusterSettings) -> Self {
        Self {
            turn_s: settings.hub_turn_s,
            threads: settings.hub_threads as f64,
            message: Duration::from_secs_f64(settings.message_s),
            state: Mutex::new(HubQueue { free_at: Instant::now(), busy: 0.0 }),
        }
    }

    fn busy(&self) -> f64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).busy
    }

    /// Waits until the messages of a turn are served.
    async fn serve(&self) {
        let served_at = {
            let mut queue = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            queue.busy += self.turn_s;
            let time = Duration::from_secs_f64(self.turn_s / self.threads);
            queue.free_at = queue.free_at.max(Instant::now()) + time;
            queue.free_at
        };
        sleep_until(served_at + self.message).await;
    }
}

/// The engine, as a worker reaches it.
struct Through {
    engine: Arc<dyn Policy>,
    hub: Arc<Hub>,
}

#[async_trait]
impl Policy for Through {
    fn version(&self) -> PolicyVersion {
        self.engine.version()
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        self.hub.serve().await;
        self.engine.sample(request).await
    }

    fn interrupt(&self, session: SessionId) -> bool {
        self.engine.interrupt(session)
    }

    fn release(&self, session: SessionId) {
        self.engine.release(session);
    }
}

/// Episodes of the simulated size whose engine and environment answer at once, to measure what a turn costs a real hub.
pub struct ClusterWorld {
    /// The tasks.
    pub tasks: Arc<dyn TaskSet>,
    /// The agents.
    pub agents: Arc<dyn AgentFactory>,
    /// The engine.
    pub policy: Arc<dyn Policy>,
    /// The bounds of an episode.
    pub limits: turnwise_rollout::Limits,
}

impl fmt::Debug for ClusterWorld {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ClusterWorld").finish_non_exhaustive()
    }
}

/// Returns the episodes of a simulation without their times.
#[must_use]
pub fn cluster_world(settings: &ClusterSettings) -> ClusterWorld {
    let work = TimedWork { environment_s: 0.0, ..settings.work() };
    ClusterWorld {
        tasks: Arc::new(work.tasks()),
        agents: Arc::new(ChatAgents::new(Arc::new(Letters))),
        policy: Arc::new(AtOnce(work)),
        limits: work.trainer(RolloutMode::Synchronous).rollout.limits,
    }
}

/// An engine that answers at once.
#[derive(Debug)]
struct AtOnce(TimedWork);

#[async_trait]
impl Policy for AtOnce {
    fn version(&self) -> PolicyVersion {
        PolicyVersion(0)
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let n_tokens = self.0.length(&request);
        let mut sample = Sample::new("at once");
        for place in 1..=n_tokens {
            let id = if place == n_tokens { END } else { 1 };
            // As many digits as real ones have.
            let logprob = -uniform_at(request.seed, request.first_index + place as u64) as f32;
            sample.push(SampledToken::new(id, logprob, PolicyVersion(0)), &[]);
        }
        sample.stop = StopReason::EndOfTurn;
        Ok(sample)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(workers: usize) -> ClusterSettings {
        ClusterSettings {
            workers,
            slots: 2,
            groups: 4,
            group: 4,
            turns: 3,
            prompt: 40,
            turn_tokens: 10,
            observation: 10,
            environment_s: 1.0,
            request_tokens_s: 100.0,
            engine_tokens_s: 10_000.0,
            training_tokens_s: 1_000.0,
            publish_s: 0.1,
            max_staleness: 8,
            hub_turn_s: 1e-4,
            hub_threads: 1,
            message_s: 1e-3,
            lifetime_s: f64::INFINITY,
            lease_s: 5.0,
            steps: 8,
        }
    }

    fn simulated(settings: ClusterSettings) -> ClusterReport {
        simulate_cluster(settings).expect("the settings have work")
    }

    /// With few workers, twice as many make steps twice as fast; with many, the trainer is hardly idle and more change nothing.
    #[test]
    fn workers_help_until_the_trainer_is_busy() {
        let [one, two, many, more] = [1, 2, 64, 128].map(|workers| simulated(settings(workers)));
        assert!((two.step_s / one.step_s - 0.5).abs() < 0.05, "{one:?} {two:?}");
        assert!(one.slots_busy > 0.9 && one.trainer_idle > 0.8, "{one:?}");
        assert!(many.trainer_idle < 0.2, "{many:?}");
        assert!((more.step_s / many.step_s - 1.0).abs() < 0.05, "{many:?} {more:?}");
        assert!(many.max_staleness <= 8.0, "{many:?}");
        assert_eq!(simulated(settings(2)), two);
    }

    #[test]
    fn a_slow_hub_bounds_the_turns_of_any_number_of_workers() {
        let slow = ClusterSettings { hub_turn_s: 0.1, ..settings(256) };
        let report = simulated(slow);
        // 48 turns of 100 ms, and those of episodes that are too old to train.
        assert!(report.step_s > 4.79 && report.step_s < 5.5, "{report:?}");
        assert!(report.hub_busy > 0.95 && report.trainer_idle > 0.5, "{report:?}");
        let two = simulated(ClusterSettings { hub_threads: 2, ..slow });
        assert!((two.step_s / report.step_s - 0.5).abs() < 0.1, "{two:?}");
    }

    #[test]
    fn killed_workers_cost_time_and_no_episode() {
        let calm = simulated(settings(2));
        let killed = simulated(ClusterSettings { lifetime_s: 20.0, ..settings(2) });
        assert!(killed.lost > 5 && calm.lost == 0, "{killed:?}");
        let cost = killed.step_s / calm.step_s;
        assert!(cost > 1.0 && cost < 1.5, "{cost} {killed:?}");
    }

    #[test]
    fn settings_without_work_are_refused() {
        let wrong = [
            ClusterSettings { workers: 0, ..settings(1) },
            ClusterSettings { training_tokens_s: 0.0, ..settings(1) },
            ClusterSettings { environment_s: -1.0, ..settings(1) },
            ClusterSettings { lifetime_s: f64::NAN, ..settings(1) },
        ];
        assert!(wrong.into_iter().all(|wrong| simulate_cluster(wrong).is_err()));
    }
}
