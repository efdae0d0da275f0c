//! A policy whose engine is one or several servers.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures_util::future::try_join_all;
use tokio::sync::{RwLock, watch};
use tokio::time::{Instant, sleep_until};
use turnwise_rollout::{Policy, PolicyError, Sample, SampleRequest, SessionId};
use turnwise_trajectory::PolicyVersion;

use crate::fault::{RemoteError, ServerFault};
use crate::http::Http;
use crate::published::PublishedWeights;
use crate::replica::{CutSignals, Replica, StreamEnd, seconds};
use crate::replicas::Replicas;
use crate::secret::Secret;
use crate::server::Server;
use crate::settings::RemoteSettings;
use crate::stream::Gathered;
use crate::{WeightFiles, WeightProbe};

/// A policy that samples on vLLM or SGLang; a handle.
///
/// - A session's requests go to the same replica, whose prefix cache has the conversation. If a replica does not answer or
///   answers wrongly, it is left alone for a time, and what is missing is sampled by another; tokens that it had sent already
///   stay, because they were sampled with the right weights.
/// - Adapters are loaded under a name of their own for each version, so that no token can carry the version of other weights.
///   Whole models replace each other in place: open requests are cut, keep their tokens, and go on under the new weights.
/// - An interruption closes the stream and returns the tokens that have arrived.
/// - **Different from an engine in this process:** tokens depend on where a turn was cut, on other requests and on the server's
///   version, even if each request has a seed. Constraints are not supported.
#[derive(Clone)]
pub struct RemotePolicy(Arc<State>);

struct State {
    server: Server,
    settings: RemoteSettings,
    replicas: Replicas,
    /// `None` until weights are published for the first time.
    newest: Mutex<Option<Arc<PublishedWeights>>>,
    /// Held by requests for reading; for writing by a publication that replaces weights in place.
    gate: RwLock<()>,
    /// True while such a publication waits for the gate.
    paused: watch::Sender<bool>,
    publishing: tokio::sync::Mutex<()>,
    /// The open requests: how they are interrupted.
    open: Mutex<HashMap<SessionId, watch::Sender<bool>>>,
    /// How many requests use each version, for versions that are loaded.
    uses: Mutex<BTreeMap<PolicyVersion, usize>>,
}

impl State {
    /// Returns weights with the server's path of their files.
    fn published(
        &self,
        version: PolicyVersion,
        files: &WeightFiles,
        ours: &Path,
        probe: WeightProbe,
    ) -> PublishedWeights {
        let theirs = self.settings.path_of_server(ours, files.path());
        let files = match files {
            WeightFiles::Adapter(_) => WeightFiles::Adapter(theirs),
            WeightFiles::Model(_) => WeightFiles::Model(theirs),
        };
        PublishedWeights { version, files, probe }
    }
}

impl RemotePolicy {
    /// Connects to the replicas, and checks that each can be used. Nothing can be sampled before weights are published.
    ///
    /// # Errors
    /// [`RemoteError::BadUrl`] without a usable URL, and [`RemoteError::Unfit`] if a replica does not answer, serves another
    /// model, or was started without what is needed.
    ///
    /// ```
    /// use turnwise_remote::{RemotePolicy, RemoteSettings, Server};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let urls = vec!["http://127.0.0.1:1".to_owned()];
    /// let settings = RemoteSettings { urls, ..RemoteSettings::default() };
    /// let error = RemotePolicy::connect(Server::Vllm, settings, None).await.unwrap_err();
    /// assert!(error.to_string().starts_with("cannot use vLLM at http://127.0.0.1:1: it does not answer"));
    /// # }
    /// ```
    pub async fn connect(
        server: Server,
        settings: RemoteSettings,
        key: Option<Secret>,
    ) -> Result<Self, RemoteError> {
        if settings.urls.is_empty() {
            let (url, reason) = (String::new(), "no URL is given".to_owned());
            return Err(RemoteError::BadUrl { url, reason });
        }
        let silence = seconds(settings.timeout_s);
        let replicas = try_join_all(settings.urls.iter().map(|url| async {
            let http = Http::new(url, key.clone(), silence)?;
            Replica::connect(http, server, &settings).await.map(Arc::new)
        }))
        .await?;
        Ok(Self(Arc::new(State {
            server,
            settings,
            replicas: Replicas(replicas),
            newest: Mutex::default(),
            gate: RwLock::default(),
            paused: watch::Sender::new(false),
            publishing: tokio::sync::Mutex::default(),
            open: Mutex::default(),
            uses: Mutex::default(),
        })))
    }

    /// Returns the most tokens of a request, prompt included: the smallest number of all replicas that say one.
    #[must_use]
    pub fn context(&self) -> Option<usize> {
        self.0.replicas.0.iter().filter_map(|replica| replica.context).min()
    }

    /// Gives all replicas new weights, checks each with the probe, and serves them from now on. `ours` is the weights directory
    /// by this machine's path. Returns the versions whose files nobody needs any more.
    ///
    /// A replica that fails is left alone, and gets the newest weights before it serves again.
    ///
    /// # Errors
    /// [`RemoteError::Publish`] if no replica serves the weights; earlier weights then stay the newest.
    pub async fn publish(
        &self,
        version: PolicyVersion,
        files: WeightFiles,
        ours: &Path,
        probe: WeightProbe,
    ) -> Result<Vec<PolicyVersion>, RemoteError> {
        let state = &*self.0;
        let _turn = state.publishing.lock().await;
        let published = Arc::new(state.published(version, &files, ours, probe));
        let results = {
            let _gate = if published.replaces() {
                state.paused.send_replace(true);
                let gate = state.gate.write().await;
                state.paused.send_replace(false);
                Some(gate)
            } else {
                None
            };
            let results = state.replicas.install(&published).await;
            if results.iter().any(Result::is_ok) {
                *locked(&state.newest) = Some(published.clone());
            }
            results
        };
        self.report(&published, &results)?;
        Ok(self.retire(&published).await)
    }

    /// Checks that every replica takes up weights, without serving them: what it serves next has to be published.
    ///
    /// # Errors
    /// [`RemoteError::Publish`] if a replica does not serve these weights.
    pub async fn check_reload(
        &self,
        files: WeightFiles,
        ours: &Path,
        probe: WeightProbe,
    ) -> Result<(), RemoteError> {
        let state = &*self.0;
        let _turn = state.publishing.lock().await;
        let _gate = state.gate.write().await;
        let published = state.published(PolicyVersion(0), &files, ours, probe);
        let results = state.replicas.install(&published).await;
        match results.into_iter().find_map(Result::err) {
            None => Ok(()),
            Some(fault) => {
                let (server, version, reason) =
                    (state.server, published.version, fault.to_string());
                Err(RemoteError::Publish { server, version, reason })
            }
        }
    }

    /// Fails if no replica took the weights.
    fn report(
        &self,
        published: &PublishedWeights,
        results: &[Result<f64, ServerFault>],
    ) -> Result<(), RemoteError> {
        let (server, version) = (self.0.server, published.version);
        let gap = results.iter().flatten().copied().fold(0.0, f64::max);
        if results.iter().any(Result::is_ok) {
            tracing::debug!(%version, gap, "{server} serves new weights");
            return Ok(());
        }
        let replicas = self.0.replicas.0.iter().zip(results);
        let failed = replicas.filter_map(|(replica, result)| {
            result.as_ref().err().map(|fault| format!("{}: {fault}", replica.url()))
        });
        let reason = failed.collect::<Vec<_>>().join("; ");
        Err(RemoteError::Publish { server, version, reason })
    }

    /// Unloads adapters of earlier versions that no request uses, and returns the versions.
    async fn retire(&self, newest: &PublishedWeights) -> Vec<PolicyVersion> {
        let retired: Vec<PolicyVersion> = {
            let mut uses = locked(&self.0.uses);
            let is_old =
                |(version, n): (&PolicyVersion, &usize)| *version != newest.version && *n == 0;
            let old: Vec<_> =
                uses.iter().filter(|one| is_old(*one)).map(|(version, _)| *version).collect();
            for version in &old {
                uses.remove(version);
            }
            uses.entry(newest.version).or_default();
            old
        };
        if !newest.replaces() {
            for replica in self.0.replicas.0.iter().filter(|one| one.health().is_serving()) {
                for version in &retired {
                    replica.unload(*version).await;
                }
            }
        }
        retired
    }

    fn newest(&self) -> Option<Arc<PublishedWeights>> {
        locked(&self.0.newest).clone()
    }

    /// Returns the newest weights, which have to be recent enough.
    fn weights(&self, request: &SampleRequest) -> Result<Arc<PublishedWeights>, PolicyError> {
        let refused = |reason: String| Err(PolicyError::Refused(reason));
        let Some(published) = self.newest() else {
            return refused("no weights are published yet".to_owned());
        };
        if published.version < request.min_version {
            let (has, wanted) = (published.version, request.min_version);
            return refused(format!("the newest weights are {has}, older than {wanted}"));
        }
        Ok(published)
    }

    /// Returns a replica that serves, or when to look again.
    async fn replica(
        &self,
        session: SessionId,
        published: &PublishedWeights,
        tries: &mut Tries,
    ) -> Result<Result<Arc<Replica>, Instant>, PolicyError> {
        let state = &*self.0;
        state.replicas.revive(published).await;
        if let Some(replica) = state.replicas.of(session) {
            tries.give_up = None;
            return Ok(Ok(replica));
        }
        let now = Instant::now();
        let end = *tries.give_up.get_or_insert(now + seconds(state.settings.max_wait_s));
        let (next, reason) = state.replicas.next_try().unwrap_or((now, "it was tried".to_owned()));
        if next > end || now >= end {
            return Err(PolicyError::Unavailable(format!("no replica serves; {reason}")));
        }
        Ok(Err(next))
    }

    /// Samples until the request is complete or interrupted, over as many streams and replicas as it takes. Returns whether
    /// it was interrupted.
    async fn gather(
        &self,
        gathered: &mut Gathered<'_>,
        request: &SampleRequest,
        cuts: &mut CutSignals,
    ) -> Result<bool, PolicyError> {
        let mut interrupted = cuts.clone();
        let mut tries = Tries::default();
        while !gathered.is_complete() {
            let pause = match self.stretch(gathered, request, cuts, &mut tries).await? {
                Next::Interrupted => return Ok(true),
                Next::Again => continue,
                Next::Wait(until) => sleep_until(until),
            };
            tokio::select! {
                biased;
                () = interrupted.interrupted() => return Ok(true),
                () = pause => {}
            }
        }
        Ok(false)
    }

    /// Samples over one stream of one replica.
    async fn stretch(
        &self,
        gathered: &mut Gathered<'_>,
        request: &SampleRequest,
        cuts: &mut CutSignals,
        tries: &mut Tries,
    ) -> Result<Next, PolicyError> {
        let state = &*self.0;
        let _gate = tokio::select! {
            biased;
            () = cuts.interrupted() => return Ok(Next::Interrupted),
            gate = state.gate.read() => gate,
        };
        let published = self.weights(request)?;
        let replica = match self.replica(request.session, &published, tries).await? {
            Ok(replica) => replica,
            Err(until) => return Ok(Next::Wait(until)),
        };
        let _permit = tokio::select! {
            biased;
            end = cuts.cut() => return Ok(Next::after(&end)),
            permit = replica.permits.acquire() => permit,
        };
        let _use = Use::new(state, published.version);
        let fault = match replica.draw(gathered, &published, cuts).await {
            Ok(StreamEnd::Finished(finish)) => match gathered.finish(finish) {
                Ok(true) => return Ok(Next::Again),
                Ok(false) => return tries.aborted(request),
                Err(fault) => fault,
            },
            Ok(end) => {
                gathered.settle();
                return Ok(Next::after(&end));
            }
            Err(fault) => fault,
        };
        tries.failed(&replica, &fault, gathered)
    }
}

/// What follows a stream.
#[derive(Debug)]
enum Next {
    /// The caller asked for what there is.
    Interrupted,
    /// Another stream, if something is missing.
    Again,
    /// Another stream, after a pause.
    Wait(Instant),
}

impl Next {
    fn after(end: &StreamEnd) -> Self {
        if *end == StreamEnd::Interrupted { Self::Interrupted } else { Self::Again }
    }
}

/// The attempts at one request.
#[derive(Debug, Default)]
struct Tries {
    busy: u32,
    broken: u32,
    aborted: u32,
    /// When the wait for a replica ends, if none serves.
    give_up: Option<Instant>,
}

/// How often a request is tried again.
const MAX_TRIES: u32 = 8;

impl Tries {
    /// Decides what follows a fault: another stream, or an error.
    fn failed(
        &mut self,
        replica: &Replica,
        fault: &ServerFault,
        gathered: &mut Gathered<'_>,
    ) -> Result<Next, PolicyError> {
        match fault {
            // No other replica would take it.
            ServerFault::Refused { message, .. } if !is_unknown_model(fault) => {
                return Err(PolicyError::Refused(message.clone()));
            }
            ServerFault::Busy { wait, .. } if self.busy < MAX_TRIES => {
                gathered.settle();
                let pause = seconds(0.25 * f64::from(1 << self.busy));
                self.busy += 1;
                return Ok(Next::Wait(Instant::now() + wait.unwrap_or(pause)));
            }
            // What it sent cannot be trusted.
            ServerFault::Wrong(_) => gathered.forget(),
            _ => gathered.settle(),
        }
        replica.fails(fault);
        self.broken += 1;
        if self.broken > MAX_TRIES {
            return Err(PolicyError::Failed(format!("{}: {fault}", replica.url())));
        }
        Ok(Next::Again)
    }

    /// Counts a request that a server gave up by itself.
    fn aborted(&mut self, request: &SampleRequest) -> Result<Next, PolicyError> {
        self.aborted += 1;
        if self.aborted > MAX_TRIES {
            let session = request.session.0;
            return Err(PolicyError::Failed(format!(
                "the server aborted a request of session {session:016x} {MAX_TRIES} times"
            )));
        }
        Ok(Next::Again)
    }
}

/// Returns whether a server does not know the adapter any more, because it was started anew.
fn is_unknown_model(fault: &ServerFault) -> bool {
    matches!(fault, ServerFault::Refused { status: 404, .. })
}

/// Counts a request of a version.
struct Use<'a>(&'a State, PolicyVersion);

impl<'a> Use<'a> {
    fn new(state: &'a State, version: PolicyVersion) -> Self {
        *locked(&state.uses).entry(version).or_default() += 1;
        Self(state, version)
    }
}

impl Drop for Use<'_> {
    fn drop(&mut self) {
        if let Some(n) = locked(&self.0.uses).get_mut(&self.1) {
            *n = n.saturating_sub(1);
        }
    }
}

/// An open request, which can be interrupted.
struct Open<'a>(&'a State, SessionId);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        locked(&self.0.open).remove(&self.1);
    }
}

#[async_trait]
impl Policy for RemotePolicy {
    fn version(&self) -> PolicyVersion {
        self.newest().map_or(PolicyVersion(0), |published| published.version)
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let state = &*self.0;
        refuse(&request, self.context()).map_err(PolicyError::Refused)?;
        self.weights(&request)?;
        let (interrupt, interrupted) = watch::channel(false);
        locked(&state.open).insert(request.session, interrupt);
        let _open = Open(state, request.session);
        let mut cuts = CutSignals { interrupted, paused: state.paused.subscribe() };
        let mut gathered = Gathered::new(&request, state.server.engine());
        let is_interrupted = self.gather(&mut gathered, &request, &mut cuts).await?;
        Ok(gathered.into_sample(is_interrupted))
    }

    fn interrupt(&self, session: SessionId) -> bool {
        let open = locked(&self.0.open);
        open.get(&session).is_some_and(|interrupt| interrupt.send(true).is_ok())
    }

    fn release(&self, session: SessionId) {
        // A server drops what it has cached when it needs the memory.
        let _ = session;
    }
}

/// Refuses requests that no server could serve.
fn refuse(request: &SampleRequest, context: Option<usize>) -> Result<(), String> {
    request.sampling.validate()?;
    if request.prompt.is_empty() || request.max_tokens == 0 {
        return Err("a request needs a prompt and at least one token to sample".to_owned());
    }
    let length = request.prompt.len().saturating_add(request.max_tokens);
    match context {
        Some(context) if length > context => {
            Err(format!("{length} tokens are more than the {context} that the server takes"))
        }
        _ => Ok(()),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for RemotePolicy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RemotePolicy")
            .field("server", &self.0.server)
            .field("urls", &self.0.settings.urls)
            .field("version", &self.version())
            .finish_non_exhaustive()
    }
}
