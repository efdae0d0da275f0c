//! Environments for tests of rollouts.

mod blocking;
mod duel;
mod panicking;
mod recovering;
mod shop;

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnwise_environment::{
    Action, Ending, Environment, EnvironmentError, Observation, Random, Recovery, Services, Step,
    TaskKey, TaskSet, ToolSpec, derive_seed,
};

pub use blocking::Blocking;
pub use duel::Duel;
pub use panicking::{Method, Panicking};
pub use recovering::Replayed;
pub use shop::{Crash, Shop, Till};

/// An environment that answers each action with a reward and a text that depend on the whole history, for a number of
/// turns.
///
/// Any two histories give different answers, so that a difference in any token shows in rewards and observations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Echo {
    /// The number of turns of an episode.
    pub turns: usize,
    /// Whether the environment supports snapshots.
    pub has_snapshots: bool,
    history: u64,
    turn: usize,
}

impl Echo {
    /// Creates an episode of `turns` turns.
    #[must_use]
    pub fn new(turns: usize, has_snapshots: bool) -> Self {
        Self { turns, has_snapshots, history: 0, turn: 0 }
    }
}

#[async_trait]
impl Environment for Echo {
    async fn reset(&mut self, seed: u64) -> Result<Observation, EnvironmentError> {
        self.history = derive_seed(seed, 0);
        Ok(format!("{:04x}", self.history & 0xffff).into())
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        self.history = action
            .text
            .bytes()
            .fold(self.history, |history, byte| derive_seed(history, u64::from(byte)));
        self.turn += 1;
        let reward = Random::new(self.history).uniform();
        Ok(if self.turn == self.turns {
            Step::terminated(reward)
        } else {
            Step::next(format!("{:04x}", self.history & 0xffff)).reward(reward)
        })
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        self.has_snapshots.then(|| serde_json::to_vec(self).expect("plain data"))
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), EnvironmentError> {
        *self = serde_json::from_slice(snapshot)
            .map_err(|error| EnvironmentError::new("cannot restore an echo").caused_by(error))?;
        Ok(())
    }
}

/// The fault of a faulty environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Returns an error.
    Error,
    /// Panics.
    Panic,
    /// Never answers.
    Hang,
    /// Returns a reward that is not a number.
    NanReward,
    /// Returns a reward outside its range.
    WildReward,
    /// Reports a failure.
    Failed,
    /// Ends without a reward.
    NoReward,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Error,
        Self::Panic,
        Self::Hang,
        Self::NanReward,
        Self::WildReward,
        Self::Failed,
        Self::NoReward,
    ];
}

/// A task set in which every `every`-th environment breaks at its second step.
#[derive(Debug)]
pub struct FaultyTasks<T> {
    /// The task set.
    pub inner: T,
    /// The fault.
    pub fault: Fault,
    /// The period of the fault, at least 1; with 1 every environment breaks.
    pub every: u64,
    made: AtomicU64,
}

impl<T> FaultyTasks<T> {
    /// Creates tasks whose environments number `every`, twice `every`, and so on, break.
    pub fn new(inner: T, fault: Fault, every: u64) -> Self {
        Self { inner, fault, every, made: AtomicU64::new(0) }
    }
}

#[deny(clippy::missing_trait_methods)]
impl<T: TaskSet> TaskSet for FaultyTasks<T> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn version(&self) -> u32 {
        self.inner.version()
    }

    fn len(&self) -> usize {
        self.inner.len()
    }

    fn is_empty(&self) -> bool {
        self.inner.is_empty()
    }

    fn key(&self, index: usize) -> TaskKey {
        self.inner.key(index)
    }

    fn environment(&self, index: usize) -> Box<dyn Environment> {
        let inner = self.inner.environment(index);
        let number = self.made.fetch_add(1, Ordering::Relaxed) + 1;
        if number.is_multiple_of(self.every) {
            Box::new(FaultyEnvironment { inner, fault: self.fault, steps: 0 })
        } else {
            inner
        }
    }
}

struct FaultyEnvironment {
    inner: Box<dyn Environment>,
    fault: Fault,
    steps: usize,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Environment for FaultyEnvironment {
    async fn reset(&mut self, seed: u64) -> Result<Observation, EnvironmentError> {
        self.inner.reset(seed).await
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        self.steps += 1;
        let step = self.inner.step(action).await?;
        if self.steps < 2 {
            return Ok(if self.fault == Fault::NoReward { unscored(step) } else { step });
        }
        match self.fault {
            Fault::Error => Err(EnvironmentError::new("made to fail")),
            Fault::Panic => panic!("made to panic"),
            Fault::Hang => std::future::pending().await,
            Fault::NanReward => Ok(Step::terminated(f64::NAN)),
            Fault::WildReward => Ok(Step::terminated(1e12)),
            Fault::Failed => Ok(Step::failed()),
            Fault::NoReward => Ok(Step::End {
                reward: None,
                ending: Ending::Terminated,
                solved: false,
                others: Vec::new(),
                late: Vec::new(),
            }),
        }
    }

    fn tools(&self) -> Vec<ToolSpec> {
        self.inner.tools()
    }

    fn reward_range(&self) -> std::ops::RangeInclusive<f64> {
        -1e6..=1e6
    }

    fn fault_reward(&self) -> Option<f64> {
        self.inner.fault_reward()
    }

    fn n_seats(&self) -> usize {
        self.inner.n_seats()
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        self.inner.snapshot()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), EnvironmentError> {
        self.inner.restore(snapshot)
    }

    fn recovery(&self) -> Recovery {
        self.inner.recovery()
    }

    fn connect(&mut self, services: &Services) {
        self.inner.connect(services);
    }

    fn is_blocking(&self) -> bool {
        self.inner.is_blocking()
    }
}

fn unscored(step: Step) -> Step {
    match step {
        Step::Next { observation, .. } => Step::next(observation),
        end @ Step::End { .. } => end,
    }
}
