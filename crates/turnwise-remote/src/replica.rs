//! One replica: what it serves, whether it can be trusted, and requests to it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use turnwise_environment::derive_seed;
use turnwise_rollout::SampleRequest;

use crate::fault::{RemoteError, ServerFault};
use crate::http::Http;
use crate::published::PublishedWeights;
use crate::quarantine::Health;
use crate::server::Server;
use crate::settings::RemoteSettings;
use crate::stream::{Finish, Gathered, SentPiece};
use crate::vllm::Endpoint;
use crate::{sglang, vllm};

/// One server.
#[derive(Debug)]
pub(crate) struct Replica {
    http: Http,
    pub(crate) server: Server,
    /// The name of the server's own model.
    model: String,
    endpoint: Endpoint,
    /// The most tokens of a request, where the server says so.
    pub(crate) context: Option<usize>,
    /// How many further requests it may have.
    pub(crate) permits: Semaphore,
    health: Mutex<Health>,
    /// Held by whoever tries a quarantined replica again.
    pub(crate) reviving: tokio::sync::Mutex<()>,
    load_timeout: Duration,
    silence: Duration,
    tolerance: f64,
    seeded: bool,
    /// The number of requests so far, for their ids.
    requests: AtomicU64,
}

/// How a stream of tokens ended.
#[derive(Debug, PartialEq)]
pub(crate) enum StreamEnd {
    /// The server ended it.
    Finished(Finish),
    /// The caller asked for what there is.
    Interrupted,
    /// New weights are to be loaded.
    Paused,
}

impl Replica {
    /// Looks at the server behind a URL, and checks that it can be used.
    pub(crate) async fn connect(
        http: Http,
        server: Server,
        settings: &RemoteSettings,
    ) -> Result<Self, RemoteError> {
        let silence = seconds(settings.timeout_s);
        let unfit = |reason: String| RemoteError::Unfit { server, url: http.url(), reason };
        let (model, context, endpoint) = match server {
            Server::Vllm => {
                let found = vllm::find(&http, settings.model.as_deref(), silence).await;
                let found = found.map_err(|fault| unfit(fault.to_string()))?.map_err(unfit)?;
                (found.model, found.context, found.endpoint)
            }
            Server::Sglang => {
                let found = sglang::find(&http).await;
                let (model, context) = found.map_err(|fault| unfit(fault.to_string()))?;
                (model, context, Endpoint::Tokens)
            }
        };
        if endpoint == Endpoint::Completions {
            tracing::info!(
                url = http.url(),
                "the token endpoint is closed (--enable-scale-out opens it); completions with ids are used"
            );
        }
        Ok(Self {
            http,
            server,
            model,
            endpoint,
            context,
            permits: Semaphore::new(settings.max_requests.max(1)),
            health: Mutex::new(Health::Serving),
            reviving: tokio::sync::Mutex::default(),
            load_timeout: seconds(settings.load_timeout_s),
            silence,
            tolerance: settings.tolerance,
            seeded: settings.seeds,
            requests: AtomicU64::new(0),
        })
    }

    pub(crate) fn url(&self) -> String {
        self.http.url()
    }

    pub(crate) fn health(&self) -> Health {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Leaves the replica alone for a time after a failed request. Many requests meet the same failure: the first counts.
    pub(crate) fn fails(&self, fault: &ServerFault) {
        if self.health().is_serving() {
            self.quarantine(fault);
        }
    }

    /// Leaves the replica alone for a time, longer than the time before.
    pub(crate) fn quarantine(&self, fault: &ServerFault) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let was_wrong = matches!(fault, ServerFault::Wrong(_));
        *health = health.after_failure(Instant::now(), was_wrong, fault.to_string());
        if let Health::Quarantined { pause, .. } = &*health {
            let pause_s = pause.as_secs();
            tracing::warn!(url = self.http.url(), pause_s, "a replica is left alone: {fault}");
        }
    }

    /// Gives the replica weights, checks that it serves them, and lets it serve. Returns the largest difference between its
    /// log-probabilities of the probe and the trainer's.
    pub(crate) async fn install(&self, published: &PublishedWeights) -> Result<f64, ServerFault> {
        let limit = self.load_timeout;
        match self.server {
            Server::Vllm => vllm::load(&self.http, published, limit).await?,
            Server::Sglang => sglang::load(&self.http, published, limit).await?,
        }
        let model = published.model_name(&self.model);
        let adapter = (!published.replaces()).then_some(&*model);
        let ids = &published.probe.ids;
        let scored = match self.server {
            Server::Vllm => vllm::score(&self.http, self.endpoint, &model, ids, limit).await?,
            Server::Sglang => sglang::score(&self.http, adapter, ids, limit).await?,
        };
        let gap = published.probe.gap(&scored);
        if gap.is_nan() || gap > self.tolerance {
            return Err(ServerFault::Wrong(format!(
                "its log-probabilities differ by {gap:.3} nats from the trainer's after {} was loaded",
                published.version
            )));
        }
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = Health::Serving;
        Ok(gap)
    }

    /// Forgets the weights of a version that nobody uses any more.
    pub(crate) async fn unload(&self, version: turnwise_trajectory::PolicyVersion) {
        let unloaded = match self.server {
            Server::Vllm => vllm::unload(&self.http, version, self.silence).await,
            Server::Sglang => sglang::unload(&self.http, version, self.silence).await,
        };
        if let Err(fault) = unloaded {
            tracing::debug!(url = self.http.url(), %version, "an adapter is not unloaded: {fault}");
        }
    }

    /// Samples what is missing, until the server ends the stream or somebody cuts it.
    pub(crate) async fn draw(
        &self,
        gathered: &mut Gathered<'_>,
        published: &PublishedWeights,
        cuts: &mut CutSignals,
    ) -> Result<StreamEnd, ServerFault> {
        let request = gathered.rest();
        let seed = self.seeded.then(|| derive_seed(request.seed, request.first_index));
        match self.server {
            Server::Vllm => self.draw_vllm(gathered, &request, seed, published, cuts).await,
            Server::Sglang => self.draw_sglang(gathered, &request, seed, published, cuts).await,
        }
    }

    async fn draw_vllm(
        &self,
        gathered: &mut Gathered<'_>,
        request: &SampleRequest,
        seed: Option<u64>,
        published: &PublishedWeights,
        cuts: &mut CutSignals,
    ) -> Result<StreamEnd, ServerFault> {
        let model = published.model_name(&self.model);
        let (path, body) = vllm::generate(self.endpoint, &model, request, seed);
        let mut events = tokio::select! {
            biased;
            end = cuts.cut() => return Ok(end),
            events = self.http.stream(path, &body) => events?,
        };
        loop {
            // Dropping the events closes the connection, which ends the request at the server.
            let event = tokio::select! {
                biased;
                end = cuts.cut() => return Ok(end),
                event = events.next() => event?,
            };
            let broken = || ServerFault::Unreachable("the stream broke off".to_owned());
            let event = event.ok_or_else(broken)?;
            let piece = vllm::read(self.endpoint, &event)?.ok_or_else(broken)?;
            if let Some(finish) = take(gathered, &piece, published)? {
                return Ok(StreamEnd::Finished(finish));
            }
        }
    }

    async fn draw_sglang(
        &self,
        gathered: &mut Gathered<'_>,
        request: &SampleRequest,
        seed: Option<u64>,
        published: &PublishedWeights,
        cuts: &mut CutSignals,
    ) -> Result<StreamEnd, ServerFault> {
        let model = published.model_name(&self.model);
        let adapter = (!published.replaces()).then_some(&*model);
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let id = format!("{:016x}-{number}", request.session.0);
        let body = sglang::generate(adapter, request, seed, &id);
        // An answer arrives whole, so silence is no sign of a lost request.
        let answer = self.http.post("/generate", &body, self.load_timeout);
        tokio::pin!(answer);
        let (answer, end) = tokio::select! {
            biased;
            end = cuts.cut() => {
                sglang::abort(&self.http, &id, self.silence).await?;
                (answer.await?, Some(end))
            }
            answer = &mut answer => (answer?, None),
        };
        let finish = take(gathered, &sglang::read(&answer)?, published)?;
        let broken = || ServerFault::Wrong("an answer without an end".to_owned());
        let finish = StreamEnd::Finished(finish.ok_or_else(broken)?);
        Ok(match end {
            Some(end) if finish == StreamEnd::Finished(Finish::Aborted) => end,
            _ => finish,
        })
    }
}

/// Appends the tokens of a piece; returns the end, if it has one.
fn take(
    gathered: &mut Gathered<'_>,
    piece: &SentPiece,
    published: &PublishedWeights,
) -> Result<Option<Finish>, ServerFault> {
    gathered.append(&piece.tokens, published.version)?;
    // An adapter is named in the request. Whole weights replace each other, and the server's label says which sampled.
    let expected = vllm::version_label(published.version);
    let is_ours = |label: &String| label.starts_with('v') && label[1..].parse::<u32>().is_ok();
    let other = piece.labels.iter().find(|label| is_ours(label) && **label != expected);
    if let Some(other) = other.filter(|_| published.replaces()) {
        return Err(ServerFault::Wrong(format!("tokens of {other} instead of {expected}")));
    }
    Ok(piece.finish)
}

/// The two reasons to cut a stream.
#[derive(Clone, Debug)]
pub(crate) struct CutSignals {
    pub(crate) interrupted: watch::Receiver<bool>,
    pub(crate) paused: watch::Receiver<bool>,
}

impl CutSignals {
    /// Waits until the stream has to be cut.
    pub(crate) async fn cut(&mut self) -> StreamEnd {
        let Self { interrupted, paused } = self;
        tokio::select! {
            biased;
            () = is_set(interrupted) => StreamEnd::Interrupted,
            () = is_set(paused) => StreamEnd::Paused,
        }
    }

    /// Waits until the caller asks for what there is.
    pub(crate) async fn interrupted(&mut self) {
        is_set(&mut self.interrupted).await;
    }
}

/// Waits until a flag is set; for ever if its sender is gone.
async fn is_set(flag: &mut watch::Receiver<bool>) {
    let gone = flag.wait_for(|cut| *cut).await.is_err();
    if gone {
        std::future::pending::<()>().await;
    }
}

/// Returns a duration; a number that is none is 0.
pub(crate) fn seconds(number: f64) -> Duration {
    Duration::try_from_secs_f64(number).unwrap_or_default()
}
