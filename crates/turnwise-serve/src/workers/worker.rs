//! A worker: it leases episodes from a trainer and advances them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::http::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use turnwise_environment::{EnvironmentError, TaskSet};
use turnwise_rollout::{
    AgentFactory, Allowance, Deadline, Episode, Progress, StopHandle, StopSignal, stop_signal,
};

use super::engine::TrainersEngine;
use super::wire::{
    Heartbeat, Lease, LeaseRequest, LeaseVerdict, Leases, Pulse, Report, Reported, RunDescription,
    Welcome,
};
use crate::environment_client::address::ServerAddress;
use crate::environment_client::http::Ask;
use crate::environment_client::patience::Patience;
use crate::environment_client::peer::Peer;

/// A process that runs a trainer's episodes. It keeps nothing: what it has done is with the trainer after each turn.
#[derive(Debug)]
pub struct RolloutWorker {
    peer: Arc<Peer>,
    welcome: Welcome,
}

/// Why a worker's work ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WorkEnd {
    /// A stop was requested.
    #[default]
    Stopped,
    /// The run is over.
    Over,
    /// The trainer could not be reached for a minute.
    Gone,
    /// The trainer does not know the worker: it was silent for too long, or the trainer began anew. It may join again.
    Forgotten,
}

/// What a worker did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerReport {
    /// Episodes that ended here.
    pub finished: u64,
    /// Episodes that went back unfinished.
    pub suspended: u64,
    /// Episodes that the trainer gave to somebody else meanwhile.
    pub lost: u64,
    /// Why it ended.
    pub end: WorkEnd,
}

impl WorkerReport {
    /// Adds what the same process did before, under another name.
    #[must_use]
    pub fn after(self, earlier: Self) -> Self {
        Self {
            finished: self.finished + earlier.finished,
            suspended: self.suspended + earlier.suspended,
            lost: self.lost + earlier.lost,
            end: self.end,
        }
    }
}

/// The reason why a worker cannot work.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The trainer's URL cannot be read, or the file of the token.
    #[error("cannot join the trainer at {url}")]
    Settings {
        /// The trainer's URL.
        url: String,
        /// The cause.
        source: EnvironmentError,
    },
    /// The trainer cannot be reached, or refuses the worker.
    #[error("cannot join the trainer at {url}")]
    Join {
        /// The trainer's URL.
        url: String,
        /// The cause.
        source: EnvironmentError,
    },
}

/// The longest time without an answer: a turn of many tokens on a busy engine.
const ANSWER_S: f64 = 1_200.0;
/// How long a trainer that cannot be reached is waited for.
const READY_S: f64 = 60.0;
const CONNECT_S: f64 = 10.0;

impl RolloutWorker {
    /// Joins a trainer. The token is what `token_file` holds.
    ///
    /// # Errors
    /// If the URL or the token's file cannot be read, the trainer cannot be reached, or it refuses the token.
    pub async fn join(url: &str, token_file: Option<&Path>) -> Result<Self, WorkerError> {
        let wrong = |source| WorkerError::Settings { url: url.to_owned(), source };
        let patience = Patience::read(CONNECT_S, ANSWER_S, READY_S).map_err(wrong)?;
        let address = ServerAddress::read(url).map_err(wrong)?;
        let peer = Arc::new(Peer::new(address, token_file, patience).map_err(wrong)?);
        let refused = |source| WorkerError::Join { url: url.to_owned(), source };
        let welcome = ask(&peer, "/workers", &json!({})).await.map_err(refused)?;
        Ok(Self { peer, welcome })
    }

    /// Returns what the run is made of.
    #[must_use]
    pub fn run(&self) -> &RunDescription {
        &self.welcome.run
    }

    /// Advances up to `n` episodes at a time until a stop is requested, the run is over, or the trainer has been gone for a minute
    /// or has forgotten this worker. Episodes that run then go back to the trainer, suspended at their next token.
    pub async fn work(
        self,
        tasks: Arc<dyn TaskSet>,
        agents: Arc<dyn AgentFactory>,
        n: usize,
        stop: &StopSignal,
    ) -> WorkerReport {
        let engine = TrainersEngine {
            peer: self.peer.clone(),
            worker: self.welcome.worker.clone(),
            newest: Arc::new(AtomicU32::new(0)),
        };
        let lease = Duration::try_from_secs_f64(self.welcome.lease_s).unwrap_or_default();
        let (halt, halted) = stop_signal();
        let mut shift = Shift {
            peer: self.peer,
            worker: self.welcome.worker,
            makers: Makers { tasks, agents, engine },
            running: JoinSet::new(),
            stops: HashMap::new(),
            report: WorkerReport::default(),
            halted,
        };
        let mut beat = Instant::now();
        // Kept over the loop: a request that is dropped could leave episodes leased to nobody.
        let mut asking: Option<BoxFuture<'static, Result<Asked, EnvironmentError>>> = None;
        loop {
            let pause = shift.beat_if_due(&mut beat, lease / 4).await;
            let is_over = stop.requested() || shift.halted.requested();
            if is_over && shift.running.is_empty() && asking.is_none() {
                return shift.report;
            }
            let free = n.saturating_sub(shift.running.len());
            if asking.is_none() && free > 0 && !is_over {
                asking = Some(Box::pin(shift.lease(free)));
            }
            tokio::select! {
                biased;
                Some(ended) = shift.running.join_next() => shift.count(ended),
                () = stop.wait(), if !is_over => halt.stop(),
                answer = asked(&mut asking) => {
                    asking = None;
                    if let Some(end) = shift.take(answer) {
                        shift.report.end = end;
                        halt.stop();
                    }
                }
                () = sleep(pause) => {}
            }
        }
    }
}

/// The trainer's answer to a request for leases.
enum Asked {
    Leases(Leases),
    /// It does not know the worker.
    Forgotten,
}

/// Waits for leases, if any were asked for.
async fn asked(
    asking: &mut Option<BoxFuture<'static, Result<Asked, EnvironmentError>>>,
) -> Result<Asked, EnvironmentError> {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}

/// What episodes are made of.
#[derive(Clone)]
struct Makers {
    tasks: Arc<dyn TaskSet>,
    agents: Arc<dyn AgentFactory>,
    engine: TrainersEngine,
}

/// A worker at work.
struct Shift {
    peer: Arc<Peer>,
    worker: String,
    makers: Makers,
    running: JoinSet<(String, End)>,
    stops: HashMap<String, StopHandle>,
    report: WorkerReport,
    halted: StopSignal,
}

/// How a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Finished,
    Suspended,
    Lost,
}

impl Shift {
    /// Asks for episodes; waits a few seconds if there are none.
    fn lease(&self, n: usize) -> impl Future<Output = Result<Asked, EnvironmentError>> + use<> {
        let (peer, wanted) = (self.peer.clone(), LeaseRequest { worker: self.worker.clone(), n });
        async move {
            let route = "/leases";
            let answer = peer.answer(Ask::post(route, written(route, &wanted)?)).await?;
            if answer.status == StatusCode::GONE {
                return Ok(Asked::Forgotten);
            }
            read(route, answer.expected(route)?.json(route)?).map(Asked::Leases)
        }
    }

    /// Starts episodes, or returns why there are no more.
    fn take(&mut self, answer: Result<Asked, EnvironmentError>) -> Option<WorkEnd> {
        match answer {
            Ok(Asked::Leases(Leases { is_over: true, .. })) => Some(WorkEnd::Over),
            Ok(Asked::Leases(Leases { given, version, .. })) => {
                self.makers.engine.note(version);
                for lease in given {
                    self.start(lease);
                }
                None
            }
            Ok(Asked::Forgotten) => {
                tracing::warn!("the trainer does not know this worker any more");
                Some(WorkEnd::Forgotten)
            }
            Err(error) => {
                tracing::warn!("the trainer is gone: {error}");
                Some(WorkEnd::Gone)
            }
        }
    }

    fn start(&mut self, lease: Lease) {
        let (handle, stop) = self.halted.child();
        self.stops.insert(lease.id.clone(), handle);
        let (peer, worker, makers) = (self.peer.clone(), self.worker.clone(), self.makers.clone());
        self.running.spawn(async move {
            let name = lease.id.clone();
            (name, advance(&peer, &worker, &makers, lease, stop).await)
        });
    }

    fn count(&mut self, ended: Result<(String, End), tokio::task::JoinError>) {
        let Ok((lease, end)) = ended else {
            self.report.lost += 1;
            return;
        };
        self.stops.remove(&lease);
        match end {
            End::Finished => self.report.finished += 1,
            End::Suspended => self.report.suspended += 1,
            End::Lost => self.report.lost += 1,
        }
    }

    /// Sends a sign of life if it is time, and returns the time until the next.
    async fn beat_if_due(&mut self, last: &mut Instant, every: Duration) -> Duration {
        let since = last.elapsed();
        if since < every {
            return every.saturating_sub(since);
        }
        *last = Instant::now();
        let leases = self.stops.keys().cloned().collect();
        let heartbeat = Heartbeat { worker: self.worker.clone(), leases };
        match ask::<Pulse>(&self.peer, "/heartbeat", &heartbeat).await {
            Ok(Pulse { stop, lost }) => {
                for lease in stop.iter().chain(&lost) {
                    if let Some(handle) = self.stops.get(lease) {
                        handle.stop();
                    }
                }
            }
            Err(error) => tracing::debug!("no answer to a sign of life: {error}"),
        }
        every
    }
}

/// Advances an episode, and reports it after each turn and at its end.
async fn advance(
    peer: &Peer,
    worker: &str,
    makers: &Makers,
    lease: Lease,
    stop: StopSignal,
) -> End {
    let Lease { id: lease, tokens, episode } = lease;
    let reporter = Reporter { peer, worker, lease: &lease };
    let episode = match Episode::restore(episode, &*makers.tasks, &*makers.agents) {
        Ok(episode) => episode,
        Err(error) => {
            let reason = match std::error::Error::source(&error) {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string(),
            };
            return reporter.last(Reported::Refused { reason }, End::Lost).await;
        }
    };
    let before = episode.n_drawn();
    let (handle, stop) = stop.child();
    let (turns, ended) = mpsc::unbounded_channel();
    let mut watcher = move |episode: &Episode| {
        if let Some(snapshot) = episode.snapshot() {
            let n_sampled = episode.n_drawn().saturating_sub(before) as u64;
            let _ = turns.send(Reported::Turn { episode: Box::new(snapshot), n_sampled });
        }
    };
    let advancing = async {
        let allowance = Allowance { tokens, stop };
        let forever = Deadline::never();
        let progress =
            episode.advance_watched(&makers.engine, &allowance, forever, &mut watcher).await;
        // There are no further turns to report.
        drop(watcher);
        progress
    };
    let (progress, ()) = tokio::join!(advancing, reporter.turns(ended, &handle));
    match progress {
        Progress::Finished(trajectory) => {
            let trajectory = Box::new(trajectory);
            reporter.last(Reported::Finished { trajectory }, End::Finished).await
        }
        Progress::Suspended(episode) => {
            let state = match episode.snapshot() {
                Some(episode) => Reported::Suspended { episode: Box::new(episode) },
                None => Reported::Unchanged,
            };
            reporter.last(state, End::Suspended).await
        }
    }
}

/// Tells the trainer of the episode of a lease.
struct Reporter<'a> {
    peer: &'a Peer,
    worker: &'a str,
    lease: &'a str,
}

impl Reporter<'_> {
    async fn send(&self, state: Reported) -> Result<LeaseVerdict, EnvironmentError> {
        let (worker, lease) = (self.worker.to_owned(), self.lease.to_owned());
        ask(self.peer, "/reports", &Report { worker, lease, state }).await
    }

    /// Reports turns while the next ones are played, and stops the episode if the trainer says so. The newest state alone counts:
    /// a turn that is not reported when the next one ends is not reported at all.
    async fn turns(&self, mut ended: mpsc::UnboundedReceiver<Reported>, handle: &StopHandle) {
        while let Some(turn) = newest(&mut ended).await {
            match self.send(turn).await {
                Ok(verdict) if verdict.is_current && !verdict.stops => {}
                Ok(_) => handle.stop(),
                Err(error) => tracing::debug!("a turn is not reported: {error}"),
            }
        }
    }

    /// Reports the end, which is lost if somebody else goes on with the episode.
    async fn last(&self, state: Reported, end: End) -> End {
        match self.send(state).await {
            Ok(LeaseVerdict { is_current: true, .. }) => end,
            Ok(_) => End::Lost,
            Err(error) => {
                tracing::warn!("a result did not reach the trainer: {error}");
                End::Lost
            }
        }
    }
}

/// Returns the newest of the states that wait.
async fn newest(states: &mut mpsc::UnboundedReceiver<Reported>) -> Option<Reported> {
    let mut state = states.recv().await?;
    while let Ok(newer) = states.try_recv() {
        state = newer;
    }
    Some(state)
}

/// Posts a message and reads the answer.
async fn ask<T: DeserializeOwned>(
    peer: &Peer,
    route: &'static str,
    message: &impl Serialize,
) -> Result<T, EnvironmentError> {
    read(route, peer.json(Ask::post(route, written(route, message)?)).await?)
}

fn written(route: &str, message: &impl Serialize) -> Result<Value, EnvironmentError> {
    let wrong = |error| {
        EnvironmentError::new(format!("a message to {route} cannot be written")).caused_by(error)
    };
    serde_json::to_value(message).map_err(wrong)
}

fn read<T: DeserializeOwned>(route: &str, answer: Value) -> Result<T, EnvironmentError> {
    let wrong = |error| {
        EnvironmentError::new(format!("the trainer's answer to {route} cannot be read"))
            .caused_by(error)
    };
    serde_json::from_value(answer).map_err(wrong)
}
