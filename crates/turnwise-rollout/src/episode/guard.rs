use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::FutureExt;
use turnwise_environment::derive_seed;
use turnwise_trajectory::{InfraFault, InfraReason, Outcome, PolicyVersion};

use crate::panic_text::panic_text;
use crate::{Policy, PolicyError, Sample, SampleRequest, SessionId, TokenConstraint};

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

/// A policy behind a guard: a panic becomes an error. It also gives the requests of an agent the seed and the session of
/// its seat: a fork's agent sends the seed of the forked episode.
pub(super) struct Engine<'a> {
    policy: &'a dyn Policy,
    /// The seed that the agent sends, and the seat's.
    seeds: (u64, u64),
    session: SessionId,
}

impl<'a> Engine<'a> {
    pub(super) fn new(policy: &'a dyn Policy, seeds: (u64, u64), session: SessionId) -> Self {
        Self { policy, seeds, session }
    }

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

    fn session(&self, asked: SessionId) -> SessionId {
        let (of_agent, _) = self.seeds;
        if asked.0 == of_agent {
            self.session
        } else {
            SessionId(derive_seed(self.session.0, asked.0))
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Policy for Engine<'_> {
    fn version(&self) -> PolicyVersion {
        self.policy.version()
    }

    async fn sample(&self, mut request: SampleRequest) -> Result<Sample, PolicyError> {
        request.seed = self.seed(request.seed);
        request.session = self.session(request.session);
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
        request.session = self.session(request.session);
        let call = async { self.policy.sample_constrained(request, constraint).await };
        let sample = caught_async(call).await;
        sample.unwrap_or_else(|panic| Err(PolicyError::Failed(format!("panicked: {panic}"))))
    }

    fn interrupt(&self, session: SessionId) -> bool {
        caught(|| self.policy.interrupt(self.session(session))).unwrap_or(false)
    }

    fn release(&self, session: SessionId) {
        self.policy.release(self.session(session));
    }
}

/// The sessions of one advance, released when it is dropped: a finished, cancelled or abandoned episode keeps none.
pub(super) struct OpenSessions<'a> {
    policy: &'a dyn Policy,
    /// Each with its policy, if that is not `policy`.
    of_seats: Vec<(Option<Arc<dyn Policy>>, SessionId)>,
    is_kept: bool,
}

impl<'a> OpenSessions<'a> {
    pub(super) fn new(
        policy: &'a dyn Policy,
        of_seats: Vec<(Option<Arc<dyn Policy>>, SessionId)>,
    ) -> Self {
        Self { policy, of_seats, is_kept: false }
    }

    /// Keeps the sessions for the next advance.
    pub(super) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for OpenSessions<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            for (frozen, session) in &self.of_seats {
                release(frozen.as_deref().unwrap_or(self.policy), *session);
            }
        }
    }
}

/// Releases a session, and ignores a panic of the engine.
pub(crate) fn release(policy: &dyn Policy, session: SessionId) {
    if let Err(panic) = caught(|| policy.release(session)) {
        tracing::warn!(session = session.0, panic, "an engine panicked in `release`");
    }
}
