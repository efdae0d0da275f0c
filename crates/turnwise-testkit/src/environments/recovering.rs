use std::ops::RangeInclusive;

use async_trait::async_trait;
use turnwise_environment::{
    Action, Environment, EnvironmentError, Observation, Recovery, Services, Step, ToolSpec,
};

/// An environment that recovers by replay, even if it supports snapshots.
#[derive(Clone, Debug)]
pub struct Replayed<E>(pub E);

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<E: Environment> Environment for Replayed<E> {
    async fn reset(&mut self, seed: u64) -> Result<Observation, EnvironmentError> {
        self.0.reset(seed).await
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        self.0.step(action).await
    }

    fn tools(&self) -> Vec<ToolSpec> {
        self.0.tools()
    }

    fn reward_range(&self) -> RangeInclusive<f64> {
        self.0.reward_range()
    }

    fn fault_reward(&self) -> Option<f64> {
        self.0.fault_reward()
    }

    fn n_seats(&self) -> usize {
        self.0.n_seats()
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        self.0.snapshot()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), EnvironmentError> {
        self.0.restore(snapshot)
    }

    fn recovery(&self) -> Recovery {
        Recovery::Replay
    }

    fn connect(&mut self, services: &Services) {
        self.0.connect(services);
    }

    fn is_blocking(&self) -> bool {
        self.0.is_blocking()
    }
}
