//! Parts of a run that only take time: engine, learner and environment.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::time::sleep;
use turnwise_environment::{Action, Environment, EnvironmentError, Observation, Step};
use turnwise_objective::{Clip, GroupAdvantage, Gspo, LengthWeight};
use turnwise_rollout::{
    ChatAgents, Limits, Policy, PolicyError, PoolSettings, Sample, SampleRequest, SessionId,
    uniform_at,
};
use turnwise_training::{
    Admission, GradientFn, Learner, LearnerError, OutcomeCredit, Parts, RolloutMode, Row,
    TrainerSettings, Update, Updated,
};
use turnwise_trajectory::{PolicyVersion, SampledToken, StopReason};

use crate::letters::{END, Letters};
use crate::witness::hash_ids;

/// The work of a step, and the seconds of its parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimedWork {
    pub(crate) groups: usize,
    pub(crate) group: usize,
    pub(crate) turns: usize,
    /// The tokens of a task's prompt.
    pub(crate) prompt: usize,
    /// The mean number of tokens of a turn; they are distributed exponentially.
    pub(crate) turn_tokens: usize,
    /// The tokens that the environment adds between turns.
    pub(crate) observation: usize,
    /// The mean seconds of the environment's answer; they are distributed exponentially.
    pub(crate) environment_s: f64,
    /// A step of the engine, without its tokens.
    pub(crate) engine_step_s: f64,
    /// A token in the engine.
    pub(crate) engine_token_s: f64,
    /// Training on a token.
    pub(crate) training_token_s: f64,
    /// New weights.
    pub(crate) publish_s: f64,
}

impl TimedWork {
    /// Returns the parts of a trainer.
    pub(crate) fn parts(self, clock: &Arc<Clock>) -> Parts<TimedLearner> {
        Parts {
            tasks: Arc::new(self.tasks()),
            agents: Arc::new(ChatAgents::new(Arc::new(Letters))),
            rubric: None,
            policy: Arc::new(TimedEngine::new(self, clock)),
            learner: TimedLearner { work: self, clock: clock.clone() },
            objective: Box::new(Gspo { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Mean }),
            credit: Box::new(OutcomeCredit { advantage: GroupAdvantage::MeanOnly }),
        }
    }

    /// Returns one task for each group.
    pub(crate) fn tasks(self) -> Vec<Talk> {
        let Self { prompt, observation, turns, environment_s, .. } = self;
        let task =
            |task| Talk { task, prompt, observation, environment_s, turns, said: 0, seed: 0 };
        (0..self.groups).map(task).collect()
    }

    /// Returns the settings of a trainer.
    pub(crate) fn trainer(self, mode: RolloutMode) -> TrainerSettings {
        let Self { groups, group, turns, prompt, turn_tokens, observation, .. } = self;
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
        TrainerSettings {
            groups_per_step: groups,
            rollout,
            mode,
            admission: Admission { keep_zero_variance: true, ..Admission::default() },
            n_minibatches: 1,
            micro_batch_tokens: context.max(4096),
            ..TrainerSettings::default()
        }
    }

    /// Returns the number of tokens of a turn.
    pub(crate) fn length(self, request: &SampleRequest) -> usize {
        let uniform = uniform_at(request.seed, request.first_index);
        let length = exponential(uniform) * self.turn_tokens as f64;
        #[expect(clippy::cast_sign_loss, reason = "a length is positive")]
        let length = length as usize;
        length.clamp(1, request.max_tokens)
    }
}

/// The longest turn, in means.
const MOST: usize = 4;

/// Returns a number from the exponential distribution with mean 1.
pub(crate) fn exponential(uniform: f64) -> f64 {
    -(1.0 - uniform.min(1.0 - 1e-9)).ln()
}

/// What engine and learner share.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    version: AtomicU32,
    /// The seconds in which engine and learner computed, and those that have not passed yet.
    work: Mutex<[Work; 2]>,
    /// The seconds of all tokens in the engine, without its steps.
    load: Mutex<f64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Work {
    busy: f64,
    owed: f64,
}

impl Clock {
    pub(crate) fn version(&self) -> PolicyVersion {
        PolicyVersion(self.version.load(Ordering::Relaxed))
    }

    /// Returns the seconds in which engine and learner computed.
    pub(crate) fn busy(&self) -> [f64; 2] {
        self.work.lock().unwrap_or_else(PoisonError::into_inner).map(|work| work.busy)
    }

    /// Returns the seconds that the engine's tokens took.
    pub(crate) fn load(&self) -> f64 {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner)
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
pub(crate) struct Talk {
    /// Tasks differ in the first letters of their prompts.
    task: usize,
    prompt: usize,
    observation: usize,
    environment_s: f64,
    turns: usize,
    said: usize,
    seed: u64,
}

#[async_trait]
impl Environment for Talk {
    async fn reset(&mut self, seed: u64) -> Result<Observation, EnvironmentError> {
        self.seed = seed;
        let digits = format!("{:b}", self.task).replace('0', "b").replace('1', "c");
        Ok(format!("{digits:a<width$}", width = self.prompt).as_str().into())
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        self.said += action.text.len();
        self.turns -= 1;
        if self.environment_s > 0.0 {
            let uniform = uniform_at(self.seed, self.turns as u64);
            sleep(Duration::from_secs_f64(exponential(uniform) * self.environment_s)).await;
        }
        if self.turns == 0 {
            // Members of a group need different rewards.
            return Ok(Step::terminated((self.said % 7) as f64));
        }
        Ok(Step::next("a".repeat(self.observation).as_str()))
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        serde_json::to_vec(&(self.turns, self.said, self.seed)).ok()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), EnvironmentError> {
        let wrong = |error| EnvironmentError::new("cannot read a snapshot").caused_by(error);
        (self.turns, self.said, self.seed) = serde_json::from_slice(snapshot).map_err(wrong)?;
        Ok(())
    }
}

/// An engine that serves all its requests in each step, and needs the time of their tokens or of the weights' bytes.
#[derive(Debug)]
struct TimedEngine {
    work: TimedWork,
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
    fn new(work: TimedWork, clock: &Arc<Clock>) -> Self {
        Self { work, clock: clock.clone(), state: Arc::default() }
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
            if state.shared.insert(prompt) { 0 } else { self.work.prompt }
        });
        state.unread += request.prompt.len().saturating_sub(known);
        state.read.insert(request.session, request.prompt.len() + n_tokens);
        state.running.push(Running { left: n_tokens, versions: Vec::new(), done: Some(done) });
        (answer, !std::mem::replace(&mut state.steps, true))
    }
}

/// Computes step after step while there are requests.
async fn serve(work: TimedWork, clock: Arc<Clock>, state: Arc<Mutex<EngineState>>) {
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
        let load = tokens as f64 * work.engine_token_s;
        *clock.load.lock().unwrap_or_else(PoisonError::into_inner) += load;
        clock.pass(0, work.engine_step_s + load).await;
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        for running in &mut state.running {
            running.left -= 1;
            running.versions.push(clock.version());
            if running.left == 0
                && let Some(done) = running.done.take()
            {
                // Nobody may wait for it any more.
                let _ = done.send(std::mem::take(&mut running.versions));
            }
        }
        let is_open =
            |running: &Running| running.done.as_ref().is_some_and(|done| !done.is_closed());
        state.running.retain(is_open);
    }
}

#[async_trait]
impl Policy for TimedEngine {
    fn version(&self) -> PolicyVersion {
        self.clock.version()
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let n_tokens = self.work.length(&request);
        let (answer, begins) = self.add(&request, n_tokens);
        if begins {
            tokio::spawn(serve(self.work, self.clock.clone(), self.state.clone()));
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
pub(crate) struct TimedLearner {
    work: TimedWork,
    clock: Arc<Clock>,
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
        let shared = self.work.prompt;
        let own: usize = rows.iter().map(|row| row.ids.len().saturating_sub(shared)).sum();
        let prompts = rows.len().div_ceil(self.work.group) * shared;
        self.clock.pass(1, (own + prompts) as f64 * self.work.training_token_s).await;
        gradient(&self.logprobs(rows).await?).map_err(LearnerError::Gradient)?;
        Ok(())
    }

    async fn step(&mut self, _: Update) -> Result<Updated, LearnerError> {
        Ok(Updated { grad_norm: 1.0, applied: true, not_finite: None })
    }

    async fn publish(&mut self) -> Result<PolicyVersion, LearnerError> {
        self.clock.pass(1, self.work.publish_s).await;
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
