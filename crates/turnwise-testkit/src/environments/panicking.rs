use std::ops::RangeInclusive;

use async_trait::async_trait;
use turnwise_environment::{
    Action, Environment, EnvironmentError, Observation, Recovery, Services, Step, ToolSpec,
};

/// A method of an environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// [`Environment::tools`]
    Tools,
    /// [`Environment::n_seats`]
    Seats,
    /// [`Environment::connect`]
    Connect,
    /// [`Environment::is_blocking`]
    IsBlocking,
    /// [`Environment::reset`]
    Reset,
    /// [`Environment::recovery`]
    Recovery,
    /// [`Environment::step`]
    Step,
    /// [`Environment::snapshot`]
    Snapshot,
    /// [`Environment::restore`]
    Restore,
    /// [`Environment::reward_range`]
    RewardRange,
    /// [`Environment::fault_reward`]
    FaultReward,
    /// [`Drop::drop`]
    Drop,
}

impl Method {
    /// Every method.
    pub const ALL: [Self; 12] = [
        Self::Tools,
        Self::Seats,
        Self::Connect,
        Self::IsBlocking,
        Self::Reset,
        Self::Recovery,
        Self::Step,
        Self::Snapshot,
        Self::Restore,
        Self::RewardRange,
        Self::FaultReward,
        Self::Drop,
    ];
}

/// An environment that panics in one of its methods.
#[derive(Clone, Debug)]
pub struct Panicking<E> {
    /// The environment.
    pub inner: E,
    /// The method that panics.
    pub method: Method,
}

impl<E> Panicking<E> {
    fn may(&self, method: Method) {
        assert!(self.method != method, "made to panic in {method:?}");
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<E: Environment + Sync> Environment for Panicking<E> {
    async fn reset(&mut self, seed: u64) -> Result<Observation, EnvironmentError> {
        self.may(Method::Reset);
        self.inner.reset(seed).await
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        self.may(Method::Step);
        self.inner.step(action).await
    }

    fn tools(&self) -> Vec<ToolSpec> {
        self.may(Method::Tools);
        self.inner.tools()
    }

    fn n_seats(&self) -> usize {
        self.may(Method::Seats);
        self.inner.n_seats()
    }

    fn reward_range(&self) -> RangeInclusive<f64> {
        self.may(Method::RewardRange);
        self.inner.reward_range()
    }

    fn fault_reward(&self) -> Option<f64> {
        self.may(Method::FaultReward);
        self.inner.fault_reward()
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        self.may(Method::Snapshot);
        self.inner.snapshot()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), EnvironmentError> {
        self.may(Method::Restore);
        self.inner.restore(snapshot)
    }

    fn recovery(&self) -> Recovery {
        self.may(Method::Recovery);
        self.inner.recovery()
    }

    fn connect(&mut self, services: &Services) {
        self.may(Method::Connect);
        self.inner.connect(services);
    }

    fn is_blocking(&self) -> bool {
        self.may(Method::IsBlocking);
        self.inner.is_blocking()
    }
}

impl<E> Drop for Panicking<E> {
    fn drop(&mut self) {
        // A test that is already failing must not abort because of this panic.
        if !std::thread::panicking() {
            self.may(Method::Drop);
        }
    }
}
