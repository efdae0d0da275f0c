//! The time of a training step on machines of other sizes: the real trainer and pool, over an engine and a learner that only
//! take time.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use turnwise_environment::{Action, Environment, EnvironmentError, Observation, Step};
use turnwise_objective::{Clip, GroupAdvantage, Gspo, LengthWeight};
use turnwise_rollout::{
    ChatAgents, Limits, Policy, PolicyError, PoolSettings, Sample, SampleRequest, SessionId,
    StopSignal, uniform_at,
};
use turnwise_training::{
    Admission, GradientFn, Learner, LearnerError, OutcomeCredit, Parts, RolloutMode, Row, Trainer,
    TrainerSettings, Update, Updated,
};
use turnwise_trajectory::{PolicyVersion, SampledToken, StopReason};

use crate::letters::{END, Letters};
use crate::witness::hash_ids;

/// What engine and learner cost on one thread, and how much of it threads share.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ComputeCosts {
    /// The bytes of weights that a decoding step reads.
    pub weight_bytes: f64,
    /// The bytes per second that one thread reads.
    pub read_one: f64,
    /// The bytes per second that all threads together read.
    pub read_all: f64,
    /// The seconds of one thread to compute a token in the engine.
    pub engine_token_s: f64,
    /// The seconds of one thread to train on a token.
    pub training_token_s: f64,
    /// The share of training that more threads do not make shorter.
    pub serial: f64,
}

/// The work of a step, and the machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OverlapSettings {
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
    /// The threads of the engine.
    pub engine_threads: usize,
    /// The threads of the learner.
    pub learner_threads: usize,
    /// Whether rollouts go on during training.
    pub asynchronous: bool,
    /// The number of steps that are averaged, after two that are not.
    pub steps: u64,
    /// The costs on one thread.
    pub costs: ComputeCosts,
}

/// The mean time of a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OverlapReport {
    /// The seconds of a step.
    pub step_s: f64,
    /// The share of the time in which the engine computed.
    pub engine_busy: f64,
    /// The share of the time in which the learner computed.
    pub learner_busy: f64,
}

/// Simulates training steps in virtual time.
///
/// # Errors
/// When the trainer fails, for example because the settings have no work in them.
///
/// # Panics
/// When the runtime cannot be created.
pub fn simulate_overlap(settings: OverlapSettings) -> Result<OverlapReport, String> {
    let OverlapSettings { groups, group, turns, turn_tokens, steps, .. } = settings;
    if [groups, turns, turn_tokens, steps as usize].contains(&0) || group < 2 {
        return Err("a step has groups of two episodes, turns and tokens".to_owned());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime on one thread needs nothing that can be missing");
    runtime.block_on(run(settings))
}

async fn run(settings: OverlapSettings) -> Result<OverlapReport, String> {
    let clock = Arc::new(Clock::default());
    let mut trainer = trainer(settings, &clock);
    let (mut began, mut before) = (Instant::now(), [0.0; 2]);
    for step in 0..settings.steps + 2 {
        if step == 2 {
            (began, before) = (Instant::now(), clock.busy());
        }
        let report = Box::pin(trainer.step(&StopSignal::never())).await;
        report.map_err(|error| error.to_string())?.ok_or("a step was stopped")?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let [engine, learner] = clock.busy();
    Ok(OverlapReport {
        step_s: seconds / settings.steps as f64,
        engine_busy: (engine - before[0]) / seconds,
        learner_busy: (learner - before[1]) / seconds,
    })
}

fn trainer(settings: OverlapSettings, clock: &Arc<Clock>) -> Trainer<TimedLearner> {
    let OverlapSettings { groups, group, turns, prompt, observation, turn_tokens, .. } = settings;
    let task = |task: usize| Talk { task, prompt, observation, turns, said: 0 };
    let parts = Parts {
        tasks: Arc::new((0..groups).map(task).collect::<Vec<_>>()),
        agents: Arc::new(ChatAgents::new(Arc::new(Letters))),
        rubric: None,
        policy: Arc::new(TimedEngine::new(settings, clock)),
        learner: TimedLearner { settings, clock: clock.clone() },
        objective: Box::new(Gspo { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Mean }),
        credit: Box::new(OutcomeCredit { advantage: GroupAdvantage::MeanOnly }),
    };
    let most = MOST * turn_tokens;
    // Messages have some tokens of their own.
    let context = prompt + turns * (most + observation + 8);
    let limits = Limits {
        max_turns: turns,
        max_turn_tokens: most,
        max_sampled_tokens: turns * most,
        max_context_tokens: context,
        ..Limits::default()
    };
    let rollout = PoolSettings {
        group_size: group,
        max_concurrent: groups * group,
        limits,
        ..PoolSettings::default()
    };
    let mode =
        if settings.asynchronous { RolloutMode::Asynchronous } else { RolloutMode::Synchronous };
    let admission = Admission { keep_zero_variance: true, ..Admission::default() };
    let settings = TrainerSettings {
        groups_per_step: groups,
        rollout,
        mode,
        admission,
        n_minibatches: 1,
        micro_batch_tokens: context.max(4096),
        ..TrainerSettings::default()
    };
    Trainer::new(parts, settings)
}

/// The longest turn, in means.
const MOST: usize = 4;

/// What engine and learner share.
#[derive(Debug, Default)]
struct Clock {
    version: AtomicU32,
    /// The seconds in which engine and learner computed, and those that have not passed yet.
    work: Mutex<[Work; 2]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Work {
    busy: f64,
    owed: f64,
}

impl Clock {
    fn version(&self) -> PolicyVersion {
        PolicyVersion(self.version.load(Ordering::Relaxed))
    }

    fn busy(&self) -> [f64; 2] {
        self.work.lock().unwrap_or_else(PoisonError::into_inner).map(|work| work.busy)
    }

    /// Lets time pass for the engine (0) or the learner (1). The runtime counts whole milliseconds; the rest is added to the
    /// next time.
    async fn pass(&self, who: usize, seconds: f64) {
        let whole = {
            let work = &mut self.work.lock().unwrap_or_else(PoisonError::into_inner)[who];
            work.owed += seconds;
            let whole = (work.owed * 1e3).floor() / 1e3;
            work.owed -= whole;
            work.busy += whole;
            whole
        };
        if whole > 0.0 {
            sleep(Duration::from_secs_f64(whole)).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
}

/// An environment that says texts of a certain length.
#[derive(Clone, Debug)]
struct Talk {
    /// Tasks differ in the first letters of their prompts.
    task: usize,
    prompt: usize,
    observation: usize,
    turns: usize,
    said: usize,
}

#[async_trait]
impl Environment for Talk {
    async fn reset(&mut self, _: u64) -> Result<Observation, EnvironmentError> {
        let digits = format!("{:b}", self.task).replace('0', "b").replace('1', "c");
        Ok(format!("{digits:a<width$}", width = self.prompt).as_str().into())
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        self.said += action.text.len();
        self.turns -= 1;
        if self.turns == 0 {
            // Members of a group need different rewards.
            return Ok(Step::terminated((self.said % 7) as f64));
        }
        Ok(Step::next("a".repeat(self.observation).as_str()))
    }
}

/// An engine that serves all its requests in each step, and needs the time of their tokens or of the weights' bytes.
#[derive(Debug)]
struct TimedEngine {
    settings: OverlapSettings,
    clock: Arc<Clock>,
    state: Arc<Mutex<EngineState>>,
}

#[derive(Debug, Default)]
struct EngineState {
    running: Vec<Running>,
    /// Tokens of prompts that wait for their computation.
    unread: usize,
    /// The tokens of each session that were computed.
    read: HashMap<SessionId, usize>,
    /// Prompts that were computed for the first member of a group, and under which weights.
    shared: HashSet<(u64, PolicyVersion)>,
    steps: bool,
}

#[derive(Debug)]
struct Running {
    left: usize,
    versions: Vec<PolicyVersion>,
    done: Option<oneshot::Sender<Vec<PolicyVersion>>>,
}

impl TimedEngine {
    fn new(settings: OverlapSettings, clock: &Arc<Clock>) -> Self {
        Self { settings, clock: clock.clone(), state: Arc::default() }
    }

    /// Adds a request, and returns where its answer comes from and whether the engine has to be started.
    fn add(
        &self,
        request: &SampleRequest,
        n_tokens: usize,
    ) -> (oneshot::Receiver<Vec<PolicyVersion>>, bool) {
        let (done, answer) = oneshot::channel();
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *guard;
        let known = state.read.get(&request.session).copied().unwrap_or_else(|| {
            // A group computes its prompt once under the same weights.
            let prompt = (hash_ids(0, &request.prompt), self.clock.version());
            if state.shared.insert(prompt) { 0 } else { self.settings.prompt }
        });
        state.unread += request.prompt.len().saturating_sub(known);
        state.read.insert(request.session, request.prompt.len() + n_tokens);
        state.running.push(Running { left: n_tokens, versions: Vec::new(), done: Some(done) });
        (answer, !std::mem::replace(&mut state.steps, true))
    }
}

/// Computes step after step while there are requests.
async fn serve(settings: OverlapSettings, clock: Arc<Clock>, state: Arc<Mutex<EngineState>>) {
    let ComputeCosts { weight_bytes, read_one, read_all, engine_token_s, .. } = settings.costs;
    let threads = settings.engine_threads as f64;
    let reading = weight_bytes / (threads * read_one).min(read_all);
    loop {
        let tokens = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.running.is_empty() {
                state.steps = false;
                return;
            }
            state.running.len() + std::mem::take(&mut state.unread)
        };
        // The times are added, as in the bound of `turnwise bench rollout`.
        clock.pass(0, reading + tokens as f64 * engine_token_s / threads).await;
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        for running in &mut state.running {
            running.left -= 1;
            running.versions.push(clock.version());
            if running.left == 0
                && let Some(done) = running.done.take()
            {
                // A request that nobody waits for any more was cancelled.
                let _ = done.send(std::mem::take(&mut running.versions));
            }
        }
        state.running.retain(|running| running.left > 0);
    }
}

#[async_trait]
impl Policy for TimedEngine {
    fn version(&self) -> PolicyVersion {
        self.clock.version()
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let uniform = uniform_at(request.seed, request.first_index).min(1.0 - 1e-9);
        let length = -(1.0 - uniform).ln() * self.settings.turn_tokens as f64;
        #[expect(clippy::cast_sign_loss, reason = "a length is positive")]
        let n_tokens = (length as usize).clamp(1, request.max_tokens);
        let (answer, begins) = self.add(&request, n_tokens);
        if begins {
            tokio::spawn(serve(self.settings, self.clock.clone(), self.state.clone()));
        }
        let versions = answer.await.map_err(|error| PolicyError::Failed(error.to_string()))?;
        let mut sample = Sample::new("timed");
        for (place, version) in versions.into_iter().enumerate() {
            let id = if place + 1 == n_tokens { END } else { 1 };
            sample.push(SampledToken::new(id, -1.0, version), &[]);
        }
        sample.stop = StopReason::EndOfTurn;
        Ok(sample)
    }

    fn release(&self, session: SessionId) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.read.remove(&session);
    }
}

/// A learner that takes time.
#[derive(Debug)]
struct TimedLearner {
    settings: OverlapSettings,
    clock: Arc<Clock>,
}

impl TimedLearner {
    /// Lets the time of some work on one thread pass.
    async fn work(&self, seconds: f64) {
        let OverlapSettings { learner_threads, costs, .. } = self.settings;
        let share = costs.serial + (1.0 - costs.serial) / learner_threads as f64;
        self.clock.pass(1, seconds * share).await;
    }
}

#[async_trait]
impl Learner for TimedLearner {
    fn version(&self) -> PolicyVersion {
        self.clock.version()
    }

    async fn check_gradients(&mut self) -> Result<(), LearnerError> {
        Ok(())
    }

    async fn logprobs(&mut self, rows: &[Row]) -> Result<Vec<Vec<f32>>, LearnerError> {
        Ok(rows.iter().map(|row| vec![-1.0; row.targets.len()]).collect())
    }

    async fn accumulate(
        &mut self,
        rows: &[Row],
        gradient: &mut GradientFn<'_>,
    ) -> Result<(), LearnerError> {
        // Rows of a group have their prompt in common, which is computed once.
        let shared = self.settings.prompt;
        let own: usize = rows.iter().map(|row| row.ids.len().saturating_sub(shared)).sum();
        let prompts = rows.len().div_ceil(self.settings.group) * shared;
        self.work((own + prompts) as f64 * self.settings.costs.training_token_s).await;
        gradient(&self.logprobs(rows).await?).map_err(LearnerError::Gradient)?;
        Ok(())
    }

    async fn step(&mut self, _: Update) -> Result<Updated, LearnerError> {
        Ok(Updated { grad_norm: 1.0, applied: true, not_finite: None })
    }

    async fn publish(&mut self) -> Result<PolicyVersion, LearnerError> {
        let ComputeCosts { weight_bytes, read_one, .. } = self.settings.costs;
        self.work(weight_bytes / read_one).await;
        self.clock.version.fetch_add(1, Ordering::Relaxed);
        Ok(self.clock.version())
    }

    async fn save(&mut self, _: &std::path::Path) -> Result<(), LearnerError> {
        Err(LearnerError::failed("save", "a learner that takes time has no weights"))
    }

    async fn load(&mut self, _: &std::path::Path, _: PolicyVersion) -> Result<(), LearnerError> {
        Err(LearnerError::failed("load", "a learner that takes time has no weights"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(engine: usize, learner: usize, asynchronous: bool) -> OverlapSettings {
        let costs = ComputeCosts {
            weight_bytes: 1e8,
            read_one: 1e10,
            read_all: 1e11,
            engine_token_s: 1e-3,
            training_token_s: 3e-3,
            serial: 0.0,
        };
        OverlapSettings {
            groups: 4,
            group: 4,
            turns: 3,
            prompt: 50,
            turn_tokens: 20,
            observation: 10,
            engine_threads: engine,
            learner_threads: learner,
            asynchronous,
            steps: 6,
            costs,
        }
    }

    fn simulated(settings: OverlapSettings) -> OverlapReport {
        simulate_overlap(settings).expect("the settings have work")
    }

    #[test]
    fn taking_turns_adds_up_and_twice_the_threads_halve_what_scales() {
        let one = simulated(settings(1, 1, false));
        assert!((one.engine_busy + one.learner_busy - 1.0).abs() < 0.01, "{one:?}");
        let two = simulated(settings(2, 2, false));
        assert!((two.step_s / one.step_s - 0.5).abs() < 5e-3, "{two:?} {one:?}");
        assert_eq!(simulated(settings(2, 2, false)), two);
    }

    /// Without what threads cannot share there is nothing to gain by overlapping; with it there is.
    #[test]
    fn overlap_pays_where_one_side_does_not_scale() {
        let synchronous = simulated(settings(2, 2, false));
        let beside = simulated(settings(1, 1, true));
        assert!(beside.step_s > 0.97 * synchronous.step_s, "{beside:?} {synchronous:?}");

        let bound = |mut settings: OverlapSettings| {
            settings.costs = ComputeCosts {
                read_one: 1e10,
                read_all: 1e10,
                engine_token_s: 1e-5,
                ..settings.costs
            };
            simulated(settings)
        };
        let (synchronous, beside) = (bound(settings(16, 16, false)), bound(settings(2, 14, true)));
        assert!(beside.step_s < 0.9 * synchronous.step_s, "{beside:?} {synchronous:?}");
        assert!(beside.learner_busy < 1.01 && beside.engine_busy < 1.01);
    }

    #[test]
    fn settings_without_work_are_refused() {
        let nothing = OverlapSettings { turns: 0, ..settings(1, 1, false) };
        assert!(simulate_overlap(nothing).is_err());
    }
}
