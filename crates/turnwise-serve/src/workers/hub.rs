//! The trainer's side: episodes are leased to workers.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;
use turnwise_rollout::{
    Allowance, Episode, EpisodeRunner, EpisodeSnapshot, Policy, Progress, RestoreError,
};

use super::jobs::{JobId, Jobs, Returned};
use super::routes;
use super::wire::RunDescription;
use crate::key::SessionKey;
use crate::listener::{BindError, ConnectionLimits, accept, listen};

/// How workers reach a trainer.
#[derive(Clone, Debug, PartialEq)]
pub struct HubSettings {
    /// The address to listen at. Port 0 takes a free one.
    pub address: SocketAddr,
    /// What workers have to send. Off loopback, one is made if none is set.
    pub token: Option<String>,
    /// The seconds after which the episodes of a silent worker are given to others.
    pub lease_s: f64,
    /// The most connections at a time.
    pub max_connections: usize,
}

impl Default for HubSettings {
    /// Returns settings for this machine alone, at a free port.
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            token: None,
            lease_s: 20.0,
            max_connections: 16_384,
        }
    }
}

/// Makes an episode of the trainer's tasks, agents and opponents from a snapshot.
pub type RestoreEpisode =
    Arc<dyn Fn(EpisodeSnapshot) -> Result<Episode, RestoreError> + Send + Sync>;

/// Leases a trainer's episodes to workers; it closes when dropped.
///
/// Every episode stays here in its last reported state, so that workers may come, go and be killed: the episodes of a worker
/// that is silent for `lease_s` go on with another one. A result counts once, whoever sends it how often. Episodes whose
/// environment cannot be taken elsewhere in the middle stay with their worker, and begin anew if that is gone.
pub struct WorkerHub {
    state: Arc<HubState>,
    _server: AbortOnDropHandle<()>,
}

pub(super) struct HubState {
    pub(super) address: SocketAddr,
    pub(super) token: Option<String>,
    pub(super) run: RunDescription,
    pub(super) lease: Duration,
    restore: RestoreEpisode,
    jobs: Mutex<Jobs>,
    /// The engine of the episodes.
    engine: Mutex<Option<Arc<dyn Policy>>>,
    /// Notified when an episode waits for a worker.
    pub(super) waits: Notify,
    is_over: AtomicBool,
}

impl WorkerHub {
    /// Listens, and serves workers in the current runtime. `run` is what they need, and `restore` makes an episode of what they
    /// send back.
    ///
    /// # Errors
    /// If nothing can listen at the address.
    pub async fn bind(
        settings: HubSettings,
        run: RunDescription,
        restore: RestoreEpisode,
    ) -> Result<Self, BindError> {
        let (listener, address) = listen(settings.address).await?;
        let needed = !address.ip().is_loopback();
        let token = settings.token;
        let token = token.or_else(|| needed.then(|| SessionKey::random().as_str().to_owned()));
        let state = Arc::new(HubState {
            address,
            token,
            run,
            lease: Duration::try_from_secs_f64(settings.lease_s).unwrap_or(Duration::from_secs(20)),
            restore,
            jobs: Mutex::default(),
            engine: Mutex::default(),
            waits: Notify::new(),
            is_over: AtomicBool::new(false),
        });
        let limits =
            ConnectionLimits { max_connections: settings.max_connections, idle_timeout_s: 60 };
        let accepting = accept(listener, routes::router(state.clone()), limits);
        Ok(Self { state, _server: AbortOnDropHandle::new(tokio::spawn(accepting)) })
    }

    /// Returns the URL that workers are told.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.state.address)
    }

    /// Returns what workers have to send, if anything.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.state.token.as_deref()
    }

    /// Returns the number of workers of which something was heard lately.
    #[must_use]
    pub fn n_workers(&self) -> usize {
        self.state.jobs().n_workers()
    }

    /// Tells workers that the run is over, so that they end. Waits until all know it, but no longer than `within`.
    pub async fn dismiss(&self, within: Duration) {
        self.state.is_over.store(true, Ordering::Relaxed);
        let until = Instant::now() + within;
        while self.n_workers() > 0 && Instant::now() < until {
            // Those that wait for an episode, and those that ask for one meanwhile.
            self.state.waits.notify_waiters();
            sleep(TOLD).await;
        }
    }

    /// Returns how often an episode was taken from a silent worker.
    #[must_use]
    pub fn n_lost(&self) -> u64 {
        self.state.jobs().n_lost
    }
}

/// How often it is looked whether all workers know that the run is over.
const TOLD: Duration = Duration::from_millis(20);

impl HubState {
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    pub(super) fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn engine(&self) -> Option<Arc<dyn Policy>> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Checks that a worker's snapshot is one that the trainer can go on with.
    pub(super) fn check(&self, snapshot: EpisodeSnapshot) -> Result<(), RestoreError> {
        (self.restore)(snapshot).map(drop)
    }
}

#[async_trait]
impl EpisodeRunner for WorkerHub {
    async fn advance(
        &self,
        episode: Episode,
        policy: &Arc<dyn Policy>,
        allowance: &Allowance,
    ) -> Progress {
        // An episode in the middle of an environment that cannot be taken elsewhere goes on here.
        let Some(snapshot) = episode.snapshot() else {
            return episode.advance(&**policy, allowance).await;
        };
        let state = &*self.state;
        *state.engine.lock().unwrap_or_else(PoisonError::into_inner) = Some(policy.clone());
        let (id, mut returned) = state.jobs().add(snapshot, allowance.tokens);
        let _withdrawn = Withdrawal { state, id };
        state.waits.notify_one();
        let mut stops = false;
        let returned = loop {
            tokio::select! {
                biased;
                returned = &mut returned => break returned,
                () = allowance.stop.wait(), if !stops => {
                    stops = true;
                    state.jobs().stop(id);
                }
                // Silent workers are noticed here too, if no other worker asks for anything.
                () = sleep(state.lease), if stops => state.jobs().reap(Instant::now(), state.lease),
            }
        };
        match returned {
            Ok(Returned::Finished(trajectory)) => Progress::Finished(*trajectory),
            // It was checked when it arrived.
            Ok(Returned::Suspended(snapshot)) => match (state.restore)(*snapshot) {
                Ok(episode) => Progress::Suspended(episode),
                Err(_) => Progress::Suspended(episode),
            },
            Ok(Returned::Unchanged) | Err(_) => Progress::Suspended(episode),
        }
    }
}

/// Withdraws an episode when nobody waits for it any more.
struct Withdrawal<'a> {
    state: &'a HubState,
    id: JobId,
}

impl Drop for Withdrawal<'_> {
    fn drop(&mut self) {
        self.state.jobs().withdraw(self.id);
    }
}

impl fmt::Debug for WorkerHub {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("WorkerHub").field("url", &self.url()).finish_non_exhaustive()
    }
}
