use std::time::Duration;

use async_trait::async_trait;
use turnwise_environment::{Action, Environment, EnvironmentError, Observation, Step};

/// An environment that blocks its thread in every step, without an await, and ends after two steps.
#[derive(Clone, Debug)]
pub struct Blocking {
    /// The time for which a step blocks its thread.
    pub pause: Duration,
    /// The value of [`Environment::is_blocking`].
    pub says_so: bool,
    steps: u8,
}

impl Blocking {
    /// Creates an environment that declares that it blocks.
    #[must_use]
    pub fn new(pause: Duration) -> Self {
        Self { pause, says_so: true, steps: 0 }
    }
}

#[async_trait]
impl Environment for Blocking {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        Ok("Wait.".into())
    }

    async fn step(&mut self, _action: Action) -> Result<Step, EnvironmentError> {
        std::thread::sleep(self.pause);
        self.steps += 1;
        Ok(if self.steps == 2 { Step::terminated(1.0) } else { Step::next("Wait.") })
    }

    fn is_blocking(&self) -> bool {
        self.says_so
    }
}
