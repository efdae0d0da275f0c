use std::fmt;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::{Instant, timeout};
use turnwise_environment::{
    Action, Ending, Environment, EnvironmentError, Observation, Step, TaskSet,
};
use turnwise_trajectory::{
    AgentFault, CancelReason, Identity, InfraFault, InfraReason, Limit, Outcome, Trajectory, Turn,
};

use crate::{
    Act, Agent, AgentError, AgentFactory, Allowance, Decision, Limits, Policy, PolicyError, Room,
};

/// One environment and one agent, from the first observation to an outcome.
///
/// An episode is a value: [`advance`](Self::advance) consumes it and gives it back when it suspends, so that nobody can
/// use one that is finished, and nobody has to drop a future to stop one.
pub struct Episode {
    environment: Box<dyn Environment>,
    agent: Box<dyn Agent>,
    factory: Factory,
    limits: Limits,
    state: State,
}

/// What the agent's factory says about every trajectory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Factory {
    renderer: String,
    sampling: Vec<turnwise_trajectory::Sampling>,
}

/// The part of an episode that is plain data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    identity: Identity,
    turns: Vec<Turn>,
    faults: u32,
    solved: bool,
    /// Whether the environment has been reset and the agent has seen what it said.
    begun: bool,
    /// How often it was suspended.
    suspensions: u32,
    /// Seconds it has run, over all its advances.
    seconds: f64,
    /// Seconds of the turn that is not over.
    turn_seconds: f64,
}

/// A suspended episode on its way to disk or another process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpisodeSnapshot {
    state: State,
    factory: Factory,
    limits: Limits,
    agent: Value,
    environment: Vec<u8>,
}

impl EpisodeSnapshot {
    /// Which episode it is of.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.state.identity
    }
}

/// Where an episode stands after an advance.
#[derive(Debug)]
#[must_use = "a suspended episode is lost when it is dropped"]
pub enum Progress {
    /// It has an outcome.
    Finished(Trajectory),
    /// It goes on when advanced again.
    Suspended(Episode),
}

impl Episode {
    /// An episode that has not begun. `environment` is fresh and `factory` makes its agent.
    #[must_use]
    pub fn new(
        identity: Identity,
        environment: Box<dyn Environment>,
        factory: &dyn AgentFactory,
        limits: Limits,
    ) -> Self {
        let agent = factory.agent(&identity, environment.tools());
        let state = State {
            identity,
            turns: Vec::new(),
            faults: 0,
            solved: false,
            begun: false,
            suspensions: 0,
            seconds: 0.0,
            turn_seconds: 0.0,
        };
        Self { environment, agent, factory: Factory::of(factory), limits, state }
    }

    /// Which episode this is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.state.identity
    }

    /// How often it has been suspended; 0 for one that was never advanced.
    #[must_use]
    pub fn suspensions(&self) -> u32 {
        self.state.suspensions
    }

    /// The tokens drawn so far.
    #[must_use]
    pub fn n_drawn(&self) -> usize {
        self.agent.n_drawn()
    }

    /// Goes on until the episode has an outcome or the allowance is used up.
    ///
    /// Never fails: whatever goes wrong is the outcome of this episode and touches no other.
    pub async fn advance(mut self, policy: &dyn Policy, allowance: &Allowance) -> Progress {
        let started = Instant::now();
        let before = self.state.seconds;
        let drawn_before = self.agent.n_drawn() as u64;
        let deadline =
            self.limits.episode_timeout().saturating_sub(Duration::from_secs_f64(before));
        let run = timeout(deadline, self.run(policy, allowance, drawn_before)).await;
        self.state.seconds = before + started.elapsed().as_secs_f64();
        match run {
            Ok(Some(outcome)) => {
                policy.release(self.state.identity.sampling_seed);
                Progress::Finished(self.finish(outcome))
            }
            Ok(None) => {
                self.state.suspensions += 1;
                Progress::Suspended(self)
            }
            Err(_) => {
                policy.release(self.state.identity.sampling_seed);
                let message = format!("the episode took over {} s", self.limits.episode_timeout_s);
                Progress::Finished(self.finish(infra(InfraReason::EpisodeTimeout, message)))
            }
        }
    }

    /// Ends the episode without an outcome of its own.
    #[must_use]
    pub fn cancel(self, reason: CancelReason) -> Trajectory {
        self.finish(Outcome::Cancelled(reason))
    }

    /// The episode as data, or `None` where its environment takes no snapshots.
    #[must_use]
    pub fn snapshot(&self) -> Option<EpisodeSnapshot> {
        // An environment that was never reset has no state worth keeping, and needs no snapshot to start.
        let environment = if self.state.begun { self.environment.snapshot()? } else { Vec::new() };
        Some(EpisodeSnapshot {
            state: self.state.clone(),
            factory: self.factory.clone(),
            limits: self.limits.clone(),
            agent: self.agent.snapshot(),
            environment,
        })
    }

    /// An episode that goes on where a snapshot was taken.
    ///
    /// # Errors
    /// When the task, the renderer or the sampling settings are not those the snapshot was taken with, or agent or
    /// environment refuse it.
    pub fn restore(
        snapshot: EpisodeSnapshot,
        tasks: &dyn TaskSet,
        factory: &dyn AgentFactory,
    ) -> Result<Self, RestoreError> {
        let EpisodeSnapshot { state, factory: before, limits, agent, environment: bytes } =
            snapshot;
        let index = state.identity.task_index;
        if index >= tasks.len() || tasks.key(index) != state.identity.task {
            return Err(RestoreError::Task { index });
        }
        let now = Factory::of(factory);
        if now != before {
            return Err(RestoreError::Agent(AgentError::Snapshot(format!(
                "its tokens are of {before:?}, not of {now:?}"
            ))));
        }
        let mut environment = tasks.environment(index);
        if state.begun {
            environment.restore(&bytes).map_err(RestoreError::Environment)?;
        }
        let agent = factory.restore(agent).map_err(RestoreError::Agent)?;
        Ok(Self { environment, agent, factory: now, limits, state })
    }

    /// `None` when the episode suspends.
    async fn run(
        &mut self,
        policy: &dyn Policy,
        allowance: &Allowance,
        drawn_before: u64,
    ) -> Option<Outcome> {
        if !self.state.begun
            && let Err(outcome) = self.begin().await
        {
            return Some(outcome);
        }
        loop {
            let room = match self.room(allowance, drawn_before) {
                Ok(Some(room)) => room,
                Ok(None) => return None,
                Err(limit) => return Some(self.truncated(limit)),
            };
            let decision = match self.act(policy, room, allowance).await {
                Ok(Act::Decided(decision)) => decision,
                Ok(Act::Interrupted) => return None,
                Err(outcome) => return Some(outcome),
            };
            if let Err(outcome) = self.answer(decision).await {
                return Some(outcome);
            }
        }
    }

    async fn begin(&mut self) -> Result<(), Outcome> {
        let seed = self.state.identity.environment_seed;
        let timeout = self.limits.environment_timeout();
        let observation = guarded("reset", timeout, self.environment.reset(seed)).await?;
        self.observe(&observation)?;
        self.state.begun = true;
        Ok(())
    }

    /// How much the next turn may draw: `None` to suspend, an error when the policy has run into a limit.
    fn room(&self, allowance: &Allowance, drawn_before: u64) -> Result<Option<Room>, Limit> {
        let pending = self.agent.n_pending();
        if pending == 0 && self.state.turns.len() >= self.limits.max_turns {
            return Err(Limit::Turns);
        }
        let of_episode = self.limits.max_sampled_tokens.saturating_sub(self.agent.n_drawn());
        if of_episode == 0 {
            return Err(Limit::SampledTokens);
        }
        let of_context = self.limits.max_context_tokens.saturating_sub(self.agent.n_context());
        if of_context == 0 {
            return Err(Limit::Context);
        }
        let used = self.agent.n_drawn() as u64 - drawn_before;
        let now = allowance.tokens.saturating_sub(used);
        if now == 0 || allowance.stop.requested() {
            return Ok(None);
        }
        // A turn that was closed by a smaller limit than its own is still a turn: the environment answers it, and the
        // limit shows when the next one is due.
        let turn =
            self.limits.max_turn_tokens.min(pending + of_episode.min(of_context)).max(pending + 1);
        Ok(Some(Room { turn, now: usize::try_from(now).unwrap_or(usize::MAX) }))
    }

    /// What was rewarded so far stays, and is held to the same range as the rewards of an episode that ended.
    fn truncated(&self, limit: Limit) -> Outcome {
        self.check_range().err().unwrap_or(Outcome::Truncated(limit))
    }

    async fn act(
        &mut self,
        policy: &dyn Policy,
        room: Room,
        allowance: &Allowance,
    ) -> Result<Act, Outcome> {
        let started = Instant::now();
        let act = AssertUnwindSafe(self.agent.act(policy, room)).catch_unwind();
        let act = tokio::select! {
            biased;
            act = timeout(self.limits.engine_timeout(), act) => act,
            // What was drawn in the request is given up, and drawn again when the episode goes on: each draw is keyed by
            // its place.
            () = allowance.stop.wait() => return Ok(Act::Interrupted),
        };
        self.state.turn_seconds += started.elapsed().as_secs_f64();
        match act {
            Ok(Ok(Ok(act))) => Ok(act),
            Ok(Ok(Err(error))) => Err(infra(reason_of(&error), error.to_string())),
            Ok(Err(panic)) => {
                Err(infra(InfraReason::EngineError, format!("a panic: {}", panic_text(&*panic))))
            }
            Err(_) => {
                let message = format!("a request took over {} s", self.limits.engine_timeout_s);
                Err(infra(InfraReason::EngineTimeout, message))
            }
        }
    }

    /// Lets the environment answer a decision and books the turn; an error is the episode's outcome.
    async fn answer(&mut self, decision: Decision) -> Result<(), Outcome> {
        let Decision { action, node, stop, engine } = decision;
        let is_empty = is_empty(&action);
        let started = Instant::now();
        let timeout = self.limits.environment_timeout();
        let answer = guarded("step", timeout, self.environment.step(action)).await;
        let seconds =
            std::mem::take(&mut self.state.turn_seconds) + started.elapsed().as_secs_f64();
        self.state.turns.push(Turn { node, stop, reward: None, faults: 0, seconds, engine });
        match answer? {
            Step::Next { observation, reward, faults } => {
                self.book(reward, faults.max(u32::from(is_empty)))?;
                if self.state.faults > self.limits.max_faults {
                    return Err(self.agent_fault(is_empty)?);
                }
                self.observe(&observation)
            }
            Step::End { reward, ending, solved } => {
                self.book(reward, 0)?;
                self.state.solved = solved;
                self.check_range()?;
                Err(match ending {
                    Ending::Terminated => Outcome::Done,
                    Ending::Truncated => Outcome::Truncated(Limit::Environment),
                    Ending::Failed => infra(
                        InfraReason::EnvError,
                        "the environment said that it failed".to_owned(),
                    ),
                })
            }
        }
    }

    fn observe(&mut self, observation: &Observation) -> Result<(), Outcome> {
        self.agent.observe(observation).map_err(|error| infra(reason_of(&error), error.to_string()))
    }

    /// Writes reward and faults into the newest turn.
    fn book(&mut self, reward: Option<f64>, faults: u32) -> Result<(), Outcome> {
        if let Some(value) = reward
            && !value.is_finite()
        {
            return Err(self.bad_reward(value));
        }
        self.state.faults += faults;
        let turn = self.state.turns.last_mut().expect("a turn was just added");
        turn.reward = reward;
        turn.faults = faults;
        Ok(())
    }

    fn agent_fault(&mut self, is_empty: bool) -> Result<Outcome, Outcome> {
        let reward = self.environment.fault_reward().unwrap_or(self.limits.fault_reward);
        let turn = self.state.turns.last_mut().expect("a fault was made in a turn");
        turn.reward = Some(turn.reward.unwrap_or(0.0) + reward);
        self.check_range()?;
        Ok(Outcome::AgentFault(if is_empty { AgentFault::Empty } else { AgentFault::FaultBudget }))
    }

    fn check_range(&self) -> Result<(), Outcome> {
        let total: f64 = self.state.turns.iter().filter_map(|turn| turn.reward).sum();
        let range = self.environment.reward_range();
        // Rewards that add up to a bound may miss it by rounding.
        let slack = 1e-9 * (1.0 + range.start().abs().min(range.end().abs()));
        if total.is_finite() && total >= range.start() - slack && total <= range.end() + slack {
            Ok(())
        } else {
            Err(self.bad_reward(total))
        }
    }

    fn bad_reward(&self, value: f64) -> Outcome {
        let Identity { environment, task_index, environment_seed, .. } = &self.state.identity;
        let turn = self.state.turns.len();
        let range = self.environment.reward_range();
        let message = format!(
            "environment `{environment}` returned reward {value} (task {task_index}, seed {environment_seed}, turn {turn}); its range is {} to {}",
            range.start(),
            range.end()
        );
        infra(InfraReason::BadReward, message)
    }

    fn finish(self, outcome: Outcome) -> Trajectory {
        Trajectory {
            identity: self.state.identity,
            renderer: self.factory.renderer,
            sampling: self.factory.sampling,
            graph: self.agent.into_graph(),
            turns: self.state.turns,
            solved: self.state.solved && outcome.is_scored(),
            outcome,
        }
    }
}

impl Factory {
    fn of(factory: &dyn AgentFactory) -> Self {
        Self { renderer: factory.renderer().to_owned(), sampling: factory.sampling() }
    }
}

impl fmt::Debug for Episode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Episode").field("state", &self.state).finish_non_exhaustive()
    }
}

/// Runs a call of the environment so that neither an error, nor a panic, nor silence gets further than this episode.
async fn guarded<T>(
    call: &str,
    limit: Duration,
    future: impl Future<Output = Result<T, EnvironmentError>>,
) -> Result<T, Outcome> {
    match timeout(limit, AssertUnwindSafe(future).catch_unwind()).await {
        Ok(Ok(Ok(value))) => Ok(value),
        Ok(Ok(Err(error))) => Err(infra(InfraReason::EnvError, format!("{call}: {error}"))),
        Ok(Err(panic)) => {
            Err(infra(InfraReason::EnvPanic, format!("{call}: {}", panic_text(&*panic))))
        }
        Err(_) => Err(infra(
            InfraReason::EnvTimeout,
            format!("{call} took over {} s", limit.as_secs_f64()),
        )),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}

fn is_empty(action: &Action) -> bool {
    action.calls.is_empty() && action.text.trim().is_empty()
}

fn infra(reason: InfraReason, message: String) -> Outcome {
    Outcome::InfraFault(InfraFault { reason, message })
}

fn reason_of(error: &AgentError) -> InfraReason {
    match error {
        AgentError::Policy(
            PolicyError::Unavailable(_) | PolicyError::Refused(_) | PolicyError::Failed(_),
        ) => InfraReason::EngineError,
        AgentError::BadEngine(_) => InfraReason::BadEngine,
        AgentError::Render(_) => InfraReason::Render,
        AgentError::Snapshot(_) => InfraReason::Snapshot,
    }
}

/// A snapshot that cannot go on here.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The task set has another task, or none, at the snapshot's index.
    #[error("restore an episode: task {index} is not the task it was suspended in")]
    Task {
        /// The snapshot's task.
        index: usize,
    },
    /// The environment refuses it.
    #[error("restore an episode's environment")]
    Environment(#[source] EnvironmentError),
    /// The agent refuses it.
    #[error("restore an episode's agent")]
    Agent(#[source] AgentError),
}
