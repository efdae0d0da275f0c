use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock, Weak, mpsc};
use std::thread;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use turnwise_candle::{CandleLearner, Decoder};
use turnwise_rollout::{Policy, PolicyError, Sample, SampleRequest, SessionId};
use turnwise_training::LearnerError;
use turnwise_trajectory::PolicyVersion;

use crate::published::Published;
use crate::worker::{Command, Job, Worker};
use crate::{GgufError, GgufModel, Quantization};

/// Limits of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GgufSettings {
    /// The number of threads that sample, each one request at a time; at least 1. All requests of a session go to the
    /// same thread.
    ///
    /// `candle` distributes products of quantised weights over its own threads, which spin while they wait and serve
    /// one product at a time. For small models, and if training or another of these threads needs the core, start the
    /// process with `CANDLE_NUM_THREADS=1`. Set `RAYON_NUM_THREADS` too, to the number of cores: without it `candle`
    /// counts them again, in `/proc/cpuinfo`, for each product of weights that are not quantised.
    pub threads: usize,
    /// The maximal memory of KV caches, over all threads; each thread may always have one sequence. Caches of idle
    /// sessions are evicted if others need the room, least recently used first.
    pub max_kv_bytes: u64,
}

impl Default for GgufSettings {
    /// Returns one thread and 1 GiB.
    fn default() -> Self {
        Self { threads: 1, max_kv_bytes: 1 << 30 }
    }
}

/// The inference side of a GGUF model: a handle to threads that sample one token at a time.
///
/// Under fixed weights an answer depends only on its request, to the last bit. The KV cache of a session is kept
/// between its turns, and that of a prompt is shared with sessions that begin with it. New weights take effect between
/// two tokens, and caches of older ones are recomputed.
///
/// Clones share the threads, which end with the last clone.
///
/// ```
/// use turnwise_candle::{AdamW, CandleLearner, Decoder, DecoderConfig};
/// use turnwise_gguf::{GgufPolicy, GgufSettings, Quantization};
/// use turnwise_rollout::{Policy, SampleRequest, SessionId};
/// use turnwise_training::Learner;
/// use turnwise_trajectory::{PolicyVersion, Sampling};
///
/// # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
/// # runtime.block_on(async {
/// let model = Decoder::random(DecoderConfig::small(320), 1)?;
/// let mut learner = CandleLearner::new(model, AdamW::default())?;
/// let policy =
///     GgufPolicy::following(&learner, Quantization::Q8_0, GgufSettings::default()).await?;
/// learner.publish().await?;
/// let request = SampleRequest {
///     prompt: vec![1, 2, 3],
///     stop: vec![],
///     max_tokens: 4,
///     sampling: Sampling::default(),
///     seed: 7,
///     first_index: 0,
///     min_version: PolicyVersion(1),
///     session: SessionId(0),
/// };
/// let sample = policy.sample(request).await?;
/// assert_eq!((sample.tokens.len(), &*sample.engine), (4, "gguf-q8_0"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct GgufPolicy {
    /// One channel for each thread.
    workers: Vec<mpsc::Sender<Command>>,
    published: Arc<Published>,
}

/// The maximal number of threads that an engine starts.
const MAX_THREADS: usize = 1024;

impl GgufPolicy {
    /// Creates an engine for constant weights, as version 0.
    ///
    /// # Errors
    /// [`GgufError::Unsupported`] for a model that the format or the engine does not support.
    pub fn new(
        model: &Decoder,
        quantization: Quantization,
        settings: GgufSettings,
    ) -> Result<Self, GgufError> {
        let model = GgufModel::new(model, quantization)?;
        let published = Arc::new(Published::new(PolicyVersion(0), model));
        Self::start(&format!("gguf-{quantization}"), &published, settings)
    }

    /// Creates an engine for a file, as version 0.
    ///
    /// # Errors
    /// Those of [`GgufModel::from_file`].
    pub fn from_file(path: &Path, settings: GgufSettings) -> Result<Self, GgufError> {
        let model = GgufModel::from_file(path)?;
        let published = Arc::new(Published::new(PolicyVersion(0), model));
        Self::start("gguf", &published, settings)
    }

    /// Creates an engine that samples with the weights that a learner publishes, under their versions. They are rounded
    /// at each publication, on the learner's thread, so that every published version is served.
    ///
    /// # Errors
    /// [`GgufError::Unsupported`] for a model that the format or the engine does not support, [`GgufError::Learner`] if
    /// the learner has stopped.
    pub async fn following(
        learner: &CandleLearner,
        quantization: Quantization,
        settings: GgufSettings,
    ) -> Result<Self, GgufError> {
        let slot: Arc<OnceLock<Weak<Published>>> = Arc::default();
        let (first, received) = oneshot::channel();
        let mut first = Some(first);
        let follower = {
            let slot = slot.clone();
            move |version, model: &Decoder| {
                if let Some(first) = first.take() {
                    // An error of the first weights becomes the error of this call, with its type.
                    let _ = first.send((version, GgufModel::new(model, quantization)));
                    return Ok(());
                }
                // Nothing samples any more when the engine is gone.
                if let Some(published) = slot.get().and_then(Weak::upgrade) {
                    published.publish(version, GgufModel::new(model, quantization)?);
                }
                Ok(())
            }
        };
        learner.on_publish(follower).await?;
        let stopped = || LearnerError::failed("reach the learner", "its thread has stopped");
        let (version, model) = received.await.map_err(|_| stopped())?;
        let published = Arc::new(Published::new(version, model?));
        // Nothing can be published before this: publishing takes the learner, which is borrowed here.
        let _ = slot.set(Arc::downgrade(&published));
        Self::start(&format!("gguf-{quantization}"), &published, settings)
    }

    fn start(
        name: &str,
        published: &Arc<Published>,
        settings: GgufSettings,
    ) -> Result<Self, GgufError> {
        let count = settings.threads.max(1);
        if count > MAX_THREADS {
            let reason = format!("{count} threads are more than {MAX_THREADS}");
            return Err(GgufError::Unsupported(reason));
        }
        let workers = (0..count).map(|index| {
            let (commands, received) = mpsc::channel();
            let max_kv_bytes = settings.max_kv_bytes / count as u64;
            let worker = Worker::new(name.to_owned(), published.clone(), max_kv_bytes);
            let thread = thread::Builder::new().name(format!("gguf-{index}"));
            // The threads that were started end with their channels.
            thread
                .spawn(move || worker.run(&received))
                .map_err(|source| GgufError::Threads { count, source })?;
            Ok(commands)
        });
        let workers = workers.collect::<Result<_, GgufError>>()?;
        Ok(Self { workers, published: published.clone() })
    }

    /// Returns the thread of a session.
    fn worker(&self, session: SessionId) -> &mpsc::Sender<Command> {
        &self.workers[(session.0 % self.workers.len() as u64) as usize]
    }
}

#[async_trait]
impl Policy for GgufPolicy {
    fn version(&self) -> PolicyVersion {
        self.published.version()
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let (reply, answer) = oneshot::channel();
        let stopped = || PolicyError::Unavailable("the engine's thread has stopped".to_owned());
        let worker = self.worker(request.session);
        worker.send(Command::Sample(Job { request, reply })).map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    fn interrupt(&self, session: SessionId) -> bool {
        self.worker(session).send(Command::Interrupt(session)).is_ok()
    }

    fn release(&self, session: SessionId) {
        // A stopped engine holds no sessions.
        let _ = self.worker(session).send(Command::Release(session));
    }
}

impl fmt::Debug for GgufPolicy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("GgufPolicy")
            .field("version", &self.version())
            .field("n_threads", &self.workers.len())
            .finish_non_exhaustive()
    }
}
