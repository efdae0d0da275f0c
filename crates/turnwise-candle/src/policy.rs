use std::fmt;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;

use async_trait::async_trait;
use tokio::sync::oneshot;
use turnwise_rollout::{Policy, PolicyError, Sample, SampleRequest, SessionId, TokenConstraint};
use turnwise_trajectory::PolicyVersion;

use crate::engine::{
    Command, Counters, EngineCompute, EngineScheduler, EngineSettings, EngineStats, Job,
};
use crate::published::{Publication, Published};
use crate::snapshot::Snapshot;
use crate::{Decoder, EngineWeights, ModelError};

/// A handle to an inference engine, which samples for all requests together on a few threads.
///
/// Requests join and leave between two tokens. Keys and values of a prefix are computed once and shared by all requests
/// that begin with it, of one session or of several, under the same weights; they are kept until the last session that
/// used them is released. New weights are adopted between two tokens.
///
/// Clones share the threads, which end when the last clone is dropped.
///
/// ```
/// use turnwise_candle::{CandlePolicy, Decoder, DecoderConfig, EngineSettings};
/// use turnwise_rollout::{Policy, SampleRequest, SessionId};
/// use turnwise_trajectory::{PolicyVersion, Sampling};
///
/// # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
/// # runtime.block_on(async {
/// let model = Decoder::random(DecoderConfig::small(32), 1)?;
/// let policy = CandlePolicy::new(&model, EngineSettings::default())?;
/// let request = SampleRequest {
///     prompt: vec![1, 2, 3],
///     stop: vec![],
///     max_tokens: 4,
///     sampling: Sampling::default(),
///     seed: 7,
///     first_index: 0,
///     min_version: PolicyVersion(0),
///     session: SessionId(0),
/// };
/// let sample = policy.sample(request.clone()).await?;
/// assert_eq!(sample.tokens.len(), 4);
/// assert_eq!(sample, policy.sample(request).await?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct CandlePolicy {
    commands: mpsc::Sender<Command>,
    published: Published,
    counters: Arc<Counters>,
}

impl CandlePolicy {
    /// Creates an engine with fixed weights, as version 0.
    ///
    /// # Errors
    /// When the weights cannot be read, and [`ModelError::Threads`] when the system starts no thread.
    pub fn new(model: &Decoder, settings: EngineSettings) -> Result<Self, ModelError> {
        Self::fixed(model.snapshot(settings.weights)?, settings)
    }

    /// Like [`Self::new`], but consumes the model and frees its weights layer by layer while converting them.
    ///
    /// # Errors
    /// When the weights cannot be read, and [`ModelError::Threads`] when the system starts no thread.
    pub fn from_model(model: Decoder, settings: EngineSettings) -> Result<Self, ModelError> {
        Self::fixed(model.into_snapshot(settings.weights)?, settings)
    }

    /// Creates an engine with the weights of a Hugging Face checkpoint, as version 0.
    ///
    /// # Errors
    /// As [`Decoder::from_directory`].
    pub fn from_directory(directory: &Path, settings: EngineSettings) -> Result<Self, ModelError> {
        Self::from_model(Decoder::from_directory(directory)?, settings)
    }

    /// Returns the engine's statistics.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        self.counters.read()
    }

    fn fixed(weights: Snapshot, settings: EngineSettings) -> Result<Self, ModelError> {
        let published = Published::unasked(PolicyVersion(0));
        let first = published.publish(PolicyVersion(0), weights);
        Self::start(published, first, settings)
    }

    /// Starts with `first`, and follows what is published.
    pub(crate) fn start(
        published: Published,
        first: Publication,
        settings: EngineSettings,
    ) -> Result<Self, ModelError> {
        let in_tensors = match settings.compute {
            EngineCompute::Auto => first.weights.is_tensors(),
            EngineCompute::Buffers => false,
            EngineCompute::Tensors => true,
        };
        if in_tensors && settings.weights == EngineWeights::Int8 {
            let reason = "weights of int8 need the engine's own operations on the CPU: EngineCompute::Buffers";
            return Err(ModelError::Settings(reason.to_owned()));
        }
        let (commands, received) = mpsc::channel();
        let counters = Arc::new(Counters::default());
        let scheduler = EngineScheduler::new(published.clone(), first, settings, counters.clone())?;
        let thread = thread::Builder::new().name("candle-policy".to_owned());
        let started = thread.spawn(move || scheduler.run(&received));
        started.map_err(|error| ModelError::threads(settings.threads, "the engine", error))?;
        Ok(Self { commands, published, counters })
    }

    async fn ask(
        &self,
        request: SampleRequest,
        constraint: Option<Arc<dyn TokenConstraint>>,
    ) -> Result<Sample, PolicyError> {
        let (reply, answer) = oneshot::channel();
        let stopped = || PolicyError::Unavailable("the engine's thread has stopped".to_owned());
        let command = Command::Sample(Job { request, constraint, reply });
        self.commands.send(command).map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

#[async_trait]
impl Policy for CandlePolicy {
    fn version(&self) -> PolicyVersion {
        self.published.version()
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        self.ask(request, None).await
    }

    async fn sample_constrained(
        &self,
        request: SampleRequest,
        constraint: Arc<dyn TokenConstraint>,
    ) -> Result<Sample, PolicyError> {
        self.ask(request, Some(constraint)).await
    }

    fn interrupt(&self, session: SessionId) -> bool {
        self.commands.send(Command::Interrupt(session)).is_ok()
    }

    fn release(&self, session: SessionId) {
        // A stopped engine has no sessions.
        let _ = self.commands.send(Command::Release(session));
    }
}

impl fmt::Debug for CandlePolicy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("CandlePolicy");
        shown
            .field("version", &self.version())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
