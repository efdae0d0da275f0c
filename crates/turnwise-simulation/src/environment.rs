use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use turnwise_environment::{
    Action, Environment, EnvironmentError, Observation, Random, Step, TaskKey, TaskSet, ToolSpec,
    derive_seed,
};
use turnwise_rollout::{Agent, AgentError, AgentFactory, ChatAgents};
use turnwise_trajectory::{Identity, Sampling};

use crate::plan::RestoreMethod;
use crate::witness::member_of;
use crate::world::World;
use crate::{FaultKind, Mutation};

/// The bound on the absolute rewards of an episode.
pub(crate) const REWARD_BOUND: f64 = 5.0;

/// The tasks of a simulation.
pub(crate) struct SimulatedTasks {
    pub(crate) world: Arc<World>,
}

impl TaskSet for SimulatedTasks {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn len(&self) -> usize {
        self.world.plan.recoveries.len()
    }

    fn key(&self, index: usize) -> TaskKey {
        TaskKey::of(&format!("simulated {index}"))
    }

    fn environment(&self, index: usize) -> Box<dyn Environment> {
        let alive = Alive::new(&self.world);
        let recovery = self.world.plan.recoveries[index];
        let state = State { task: index as u64, ..State::default() };
        Box::new(Simulated { alive, recovery, state, actions: Vec::new() })
    }
}

/// Counts an environment while it exists.
struct Alive {
    world: Arc<World>,
}

impl Alive {
    fn new(world: &Arc<World>) -> Self {
        world.state().environments += 1;
        Self { world: world.clone() }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        if !self.world.is(Mutation::KeepsEnvironments) {
            self.world.state().environments -= 1;
        }
    }
}

/// An environment whose answers are a hash of the conversation, and which fails according to the plan.
struct Simulated {
    alive: Alive,
    recovery: RestoreMethod,
    state: State,
    actions: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    task: u64,
    seed: u64,
    history: u64,
    turn: u64,
    turns: u64,
}

/// The content of a snapshot.
#[derive(Serialize, Deserialize)]
enum Saved {
    State(State),
    Replay { seed: u64, actions: Vec<String> },
}

const BREAKS: [FaultKind; 12] = [
    FaultKind::EnvironmentError,
    FaultKind::EnvironmentPanic,
    FaultKind::EnvironmentDead,
    FaultKind::EnvironmentSlow,
    FaultKind::EnvironmentLate,
    FaultKind::EnvironmentFailed,
    FaultKind::RewardNotANumber,
    FaultKind::RewardInfinite,
    FaultKind::RewardOutOfRange,
    FaultKind::RewardMissing,
    FaultKind::HugeObservation,
    FaultKind::EmptyObservation,
];

impl State {
    fn begin(&mut self, seed: u64) {
        self.seed = seed;
        self.history = derive_seed(seed, self.task);
        self.turns = 1 + Random::new(self.history).below(6);
    }

    fn answer(&mut self, text: &str) -> Step {
        self.history = text
            .bytes()
            .fold(derive_seed(self.history, 0), |hash, byte| derive_seed(hash, u64::from(byte)));
        self.turn += 1;
        let mut random = Random::new(self.history);
        // Few different rewards, so that groups without variance are as common as others.
        let reward = random.below(3) as f64 / 2.0;
        if self.turn >= self.turns {
            return match random.below(8) {
                0 => Step::truncated(),
                _ => Step::terminated(reward),
            };
        }
        let next = Step::next(format!("{:02x}", self.history & 0xff));
        match random.below(4) {
            0 => next.faults(1),
            1 => next.reward(reward - 0.5),
            _ => next,
        }
    }
}

impl Simulated {
    fn world(&self) -> &Arc<World> {
        &self.alive.world
    }

    fn limit(&self) -> Duration {
        Duration::from_secs_f64(self.world().plan.limits().environment_timeout_s)
    }

    /// Waits, and returns the fault that changes the answer, if any.
    async fn wait(&self) -> Result<Option<FaultKind>, EnvironmentError> {
        let fault = self.world().fault(&BREAKS);
        match fault {
            Some(FaultKind::EnvironmentError) => return Err(EnvironmentError::new("simulated")),
            Some(FaultKind::EnvironmentPanic) => std::panic::resume_unwind(Box::new("simulated")),
            Some(FaultKind::EnvironmentDead) => std::future::pending().await,
            Some(FaultKind::EnvironmentSlow) => sleep(self.limit().mul_f64(0.9)).await,
            Some(FaultKind::EnvironmentLate) => sleep(self.limit().mul_f64(1.5)).await,
            _ => sleep(self.world().latency(2000)).await,
        }
        Ok(fault)
    }

    /// Under a mutation, continues a call behind the scheduler's back.
    fn outlive(&self) {
        if self.world().is(Mutation::OutlivesDeadline) {
            let (call, limit) = (self.world().call("step", self.limit()), self.limit());
            tokio::spawn(async move {
                sleep(limit * 3).await;
                drop(call);
            });
        }
    }
}

#[async_trait]
impl Environment for Simulated {
    async fn reset(&mut self, seed: u64) -> Result<Observation, EnvironmentError> {
        let _call = self.world().call("reset", self.limit());
        self.world().event("reset", &[seed]);
        let fault = self.wait().await?;
        self.state.begin(seed);
        Ok(match fault {
            Some(FaultKind::HugeObservation) => "x".repeat(20_000).into(),
            Some(FaultKind::EmptyObservation) => Observation::default(),
            _ => "go".into(),
        })
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        let _call = self.world().call("step", self.limit());
        self.outlive();
        let fault = self.wait().await?;
        let step = self.state.answer(&action.text);
        self.actions.push(action.text);
        self.world().event("step", &[self.state.history, self.state.turn]);
        Ok(match fault {
            Some(FaultKind::EnvironmentFailed) => Step::failed(),
            Some(FaultKind::RewardNotANumber) => step.reward(f64::NAN),
            Some(FaultKind::RewardInfinite) => step.reward(f64::INFINITY),
            Some(FaultKind::RewardOutOfRange) => Step::terminated(1e9),
            Some(FaultKind::RewardMissing) => Step::truncated(),
            Some(FaultKind::HugeObservation) => Step::next("x".repeat(20_000)),
            Some(FaultKind::EmptyObservation) => Step::next(Observation::default()),
            _ => step,
        })
    }

    fn reward_range(&self) -> std::ops::RangeInclusive<f64> {
        -REWARD_BOUND..=REWARD_BOUND
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        let saved = match self.recovery {
            RestoreMethod::Never => return None,
            RestoreMethod::State => Saved::State(self.state.clone()),
            RestoreMethod::Replay => {
                Saved::Replay { seed: self.state.seed, actions: self.actions.clone() }
            }
        };
        let mut bytes = serde_json::to_vec(&saved).expect("plain data");
        match self.world().fault(&[FaultKind::SnapshotMissing, FaultKind::SnapshotCorrupt]) {
            Some(FaultKind::SnapshotMissing) => return None,
            Some(_) => bytes[0] ^= 0x40,
            None => {}
        }
        Some(bytes)
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), EnvironmentError> {
        if self.world().fault(&[FaultKind::RestoreRefused]).is_some() {
            return Err(EnvironmentError::new("simulated"));
        }
        let saved = serde_json::from_slice(snapshot)
            .map_err(|error| EnvironmentError::new("cannot read a snapshot").caused_by(error))?;
        match saved {
            Saved::State(state) => self.state = state,
            Saved::Replay { seed, actions } => {
                self.state.begin(seed);
                for action in &actions {
                    let _ = self.state.answer(action);
                }
                self.actions = actions;
            }
        }
        Ok(())
    }
}

/// The real agents; each created agent is a started episode.
pub(crate) struct Agents {
    pub(crate) world: Arc<World>,
    pub(crate) inner: ChatAgents,
}

impl AgentFactory for Agents {
    fn renderer(&self) -> &str {
        self.inner.renderer()
    }

    fn sampling(&self) -> Vec<Sampling> {
        self.inner.sampling()
    }

    fn agent(&self, identity: &Identity, tools: Vec<ToolSpec>) -> Box<dyn Agent> {
        let member = member_of(identity);
        let numbers = [member.0.0, u64::from(member.1), u64::from(identity.attempt)];
        self.world.event("episode", &numbers);
        self.world.state().witness.dispatched.insert(member);
        self.inner.agent(identity, tools)
    }

    fn restore(&self, snapshot: serde_json::Value) -> Result<Box<dyn Agent>, AgentError> {
        self.inner.restore(snapshot)
    }
}
