use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::FutureExt;
use turnwise_environment::derive_seed;
use turnwise_trajectory::{InfraFault, InfraReason, Outcome, PolicyVersion};

use crate::panic_text::panic_text;
use crate::{Policy, PolicyError, Sample, SampleRequest, TokenConstraint};

pub(super) fn infra(reason: InfraReason, message: impl Into<String>) -> Outcome {
    Outcome::InfraFault(InfraFault { reason, message: message.into() })
}

/// Calls foreign code and returns its panic as text. A value that panicked must not be used again.
pub(super) fn caught<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| panic_text(&*panic).to_owned())
}

/// Like [`caught`], for a future.
pub(super) async fn caught_async<T>(call: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(call).catch_unwind().await.map_err(|panic| panic_text(&*panic).to_owned())
}

/// One episode's view of the policy: a panic is an error, and a forked episode samples with its own seed.
pub(super) struct Engine<'a> {
    policy: &'a dyn Policy,
    /// The seed that the agent was created with, and the seed that tokens are sampled with.
    seeds: (u64, u64),
}

impl<'a> Engine<'a> {
    pub(super) fn new(policy: &'a dyn Policy, of_agent: u64, of_episode: u64) -> Self {
        Self { policy, seeds: (of_agent, of_episode) }
    }

    /// Maps the agent's seed to the episode's. The two differ only in a fork; a seed that the agent derived from its
    /// own is mapped too.
    fn seed(&self, asked: u64) -> u64 {
        let (old, new) = self.seeds;
        if old == new {
            asked
        } else if asked == old {
            new
        } else {
            derive_seed(new, asked)
        }
    }
}

#[async_trait]
impl Policy for Engine<'_> {
    fn version(&self) -> PolicyVersion {
        self.policy.version()
    }

    async fn sample(&self, mut request: SampleRequest) -> Result<Sample, PolicyError> {
        request.seed = self.seed(request.seed);
        request.session = self.seed(request.session);
        // The call is inside the async block, because a policy may panic before it returns a future.
        let sample = caught_async(async { self.policy.sample(request).await }).await;
        sample.unwrap_or_else(|panic| Err(PolicyError::Failed(format!("panicked: {panic}"))))
    }

    async fn sample_constrained(
        &self,
        mut request: SampleRequest,
        constraint: Arc<dyn TokenConstraint>,
    ) -> Result<Sample, PolicyError> {
        request.seed = self.seed(request.seed);
        request.session = self.seed(request.session);
        let call = async { self.policy.sample_constrained(request, constraint).await };
        let sample = caught_async(call).await;
        sample.unwrap_or_else(|panic| Err(PolicyError::Failed(format!("panicked: {panic}"))))
    }

    fn interrupt(&self, session: u64) -> bool {
        caught(|| self.policy.interrupt(self.seed(session))).unwrap_or(false)
    }

    fn release(&self, session: u64) {
        self.policy.release(self.seed(session));
    }
}

/// Releases an engine session when it is dropped: with the episode, or with an abandoned future.
pub(super) struct Session<'a> {
    policy: &'a dyn Policy,
    id: u64,
    is_kept: bool,
}

impl<'a> Session<'a> {
    pub(super) fn new(policy: &'a dyn Policy, session: u64) -> Self {
        Self { policy, id: session, is_kept: false }
    }

    /// Keeps the session at the engine, because the episode continues later.
    pub(super) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            release(self.policy, self.id);
        }
    }
}

/// Releases a session, and ignores a panic of the engine.
pub(crate) fn release(policy: &dyn Policy, session: u64) {
    if let Err(panic) = caught(|| policy.release(session)) {
        tracing::warn!(session, panic, "an engine panicked in `release`");
    }
}
