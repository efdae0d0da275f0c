use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use turnwise_environment::{
    Action, Environment, EnvironmentError, ErrorKind, LedgerStore, Observation, Recovery, Services,
    Step, ToolLedger, ToolSpec,
};
use turnwise_trajectory::{Identity, InfraReason, Outcome};

use super::guard::{caught, caught_async, infra};
use crate::{BlockingThreads, Deadline};

/// One episode's environment behind guards: every call returns an answer or the episode's outcome.
///
/// After an error, a panic or a missed deadline the environment is dropped, and never used again.
pub(super) struct World {
    kept: Option<Kept>,
    services: Services,
    threads: BlockingThreads,
}

/// An environment whose panics on drop are caught.
struct Kept(Option<Box<dyn Environment>>);

impl Kept {
    fn get(&self) -> &dyn Environment {
        self.0.as_deref().expect("it is there until it is dropped")
    }

    fn get_mut(&mut self) -> &mut dyn Environment {
        self.0.as_deref_mut().expect("it is there until it is dropped")
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let environment = self.0.take();
        if let Err(panic) = caught(|| drop(environment)) {
            tracing::warn!(panic, "an environment panicked when it was dropped");
        }
    }
}

/// The calls of an environment that may take time.
enum Call {
    Reset(u64),
    Step(Box<Action>),
}

impl Call {
    fn name(&self) -> &'static str {
        match self {
            Self::Reset(_) => "reset",
            Self::Step(_) => "step",
        }
    }

    async fn make(
        self,
        environment: &mut dyn Environment,
    ) -> Result<WorldAnswer, EnvironmentError> {
        match self {
            Self::Reset(seed) => environment.reset(seed).await.map(WorldAnswer::Observation),
            Self::Step(action) => environment.step(*action).await.map(WorldAnswer::Step),
        }
    }
}

enum WorldAnswer {
    Observation(Observation),
    Step(Step),
}

/// The result of a call that returned: the answer, an error, or a panic.
type Returned = Result<Result<WorldAnswer, EnvironmentError>, String>;

impl World {
    pub(super) fn new(environment: Box<dyn Environment>, identity: &Identity) -> Self {
        let Identity { group, member, attempt, .. } = identity;
        let services = Services::new(ToolLedger::new(group.0, *member, *attempt));
        let threads = BlockingThreads::of_process();
        Self { kept: Some(Kept(Some(environment))), services, threads }
    }

    pub(super) fn ledger(&self) -> &ToolLedger {
        &self.services.ledger
    }

    pub(super) fn keep_ledger_in(&self, store: Arc<dyn LedgerStore>) {
        self.services.ledger.keep_in(store);
    }

    pub(super) fn threads(&self) -> BlockingThreads {
        self.threads.clone()
    }

    pub(super) fn use_threads(&mut self, threads: BlockingThreads) {
        self.threads = threads;
    }

    /// Resets the environment; `limit` bounds the call, `deadline` the whole episode.
    pub(super) async fn reset(
        &mut self,
        seed: u64,
        deadline: Deadline,
        limit: Duration,
    ) -> Result<Observation, Outcome> {
        self.connect()?;
        match self.call(Call::Reset(seed), deadline, limit).await? {
            WorldAnswer::Observation(observation) => Ok(observation),
            WorldAnswer::Step(_) => unreachable!("a reset answers with an observation"),
        }
    }

    pub(super) async fn step(
        &mut self,
        action: Action,
        deadline: Deadline,
        limit: Duration,
    ) -> Result<Step, Outcome> {
        match self.call(Call::Step(Box::new(action)), deadline, limit).await? {
            WorldAnswer::Step(step) => Ok(step),
            WorldAnswer::Observation(_) => unreachable!("a step answers with a step"),
        }
    }

    pub(super) fn tools(&self) -> Result<Vec<ToolSpec>, Outcome> {
        self.ask("tools", |environment| environment.tools())
    }

    pub(super) fn n_seats(&self) -> Result<usize, Outcome> {
        self.ask("n_seats", |environment| environment.n_seats())
    }

    pub(super) fn reward_range(&self) -> Result<RangeInclusive<f64>, Outcome> {
        self.ask("reward_range", |environment| environment.reward_range())
    }

    pub(super) fn fault_reward(&self) -> Result<Option<f64>, Outcome> {
        self.ask("fault_reward", |environment| environment.fault_reward())
    }

    pub(super) fn recovery(&self) -> Result<Recovery, Outcome> {
        self.ask("recovery", |environment| environment.recovery())
    }

    pub(super) fn snapshot(&self) -> Result<Option<Vec<u8>>, Outcome> {
        self.ask("snapshot", |environment| environment.snapshot())
    }

    /// Restores the environment.
    pub(super) fn restore(&mut self, bytes: &[u8]) -> Result<(), EnvironmentError> {
        let refused =
            |why: String| EnvironmentError::new("cannot restore an environment").caused_by(why);
        let services = self.services.clone();
        let kept = self.kept.as_mut().ok_or_else(|| refused("it is gone".to_owned()))?;
        let restored = caught(|| {
            kept.get_mut().connect(&services);
            kept.get_mut().restore(bytes)
        });
        restored.unwrap_or_else(|panic| Err(refused(format!("it panicked: {panic}"))))
    }

    fn connect(&mut self) -> Result<(), Outcome> {
        let services = self.services.clone();
        let Some(kept) = &mut self.kept else { return Err(gone()) };
        caught(|| kept.get_mut().connect(&services))
            .map_err(|panic| infra(InfraReason::EnvPanic, format!("connect: {panic}")))
    }

    fn ask<T>(
        &self,
        what: &str,
        question: impl FnOnce(&dyn Environment) -> T,
    ) -> Result<T, Outcome> {
        let Some(kept) = &self.kept else { return Err(gone()) };
        caught(|| question(kept.get()))
            .map_err(|panic| infra(InfraReason::EnvPanic, format!("{what}: {panic}")))
    }

    async fn call(
        &mut self,
        call: Call,
        deadline: Deadline,
        limit: Duration,
    ) -> Result<WorldAnswer, Outcome> {
        let is_blocking = self.ask("is_blocking", |environment| environment.is_blocking())?;
        let Some(mut kept) = self.kept.take() else { return Err(gone()) };
        let name = call.name();
        let returned = if is_blocking {
            call_on_thread(self.threads(), kept, call, deadline, limit).await
        } else {
            let make = caught_async(call.make(kept.get_mut()));
            let returned = deadline.child(limit).bound(make).await;
            returned.map(|returned| (kept, returned))
        };
        let Some((kept, returned)) = returned else { return Err(late(name, deadline, limit)) };
        match returned {
            Ok(Ok(answer)) => {
                self.kept = Some(kept);
                Ok(answer)
            }
            Ok(Err(error)) => {
                Err(infra(reason_of(&error), format!("{name}: {}", explained(&error))))
            }
            Err(panic) => Err(infra(InfraReason::EnvPanic, format!("{name}: {panic}"))),
        }
    }
}

/// Runs a call on a thread. Only `deadline` bounds the wait for a thread; `limit` also bounds the call.
async fn call_on_thread(
    threads: BlockingThreads,
    mut kept: Kept,
    call: Call,
    deadline: Deadline,
    limit: Duration,
) -> Option<(Kept, Returned)> {
    let permit = deadline.bound(threads.permit()).await?;
    let runtime = Handle::current();
    let work = move || {
        let returned = runtime.block_on(caught_async(call.make(kept.get_mut())));
        (kept, returned)
    };
    deadline.child(limit).bound(threads.run(permit, work)).await?
}

fn gone() -> Outcome {
    infra(InfraReason::Protocol, "the environment was called again after it broke")
}

/// Returns the outcome of a call that did not return, by the deadline that passed.
fn late(name: &str, deadline: Deadline, limit: Duration) -> Outcome {
    if deadline.is_over() {
        infra(InfraReason::EpisodeTimeout, format!("the time of the episode was up in {name}"))
    } else {
        let message = format!("{name} took over {} s", limit.as_secs_f64());
        infra(InfraReason::EnvTimeout, message)
    }
}

fn reason_of(error: &EnvironmentError) -> InfraReason {
    match error.kind() {
        ErrorKind::ToolInDoubt => InfraReason::ToolInDoubt,
        ErrorKind::Protocol => InfraReason::Protocol,
        _ => InfraReason::EnvError,
    }
}

/// Formats an error with its causes.
fn explained(error: &EnvironmentError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
