use std::error::Error;
use std::fmt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use async_trait::async_trait;
use rayon::{ThreadPoolBuildError, ThreadPoolBuilder};
use tokio::sync::oneshot;
use turnwise_rollout::Meter;
use turnwise_training::{GradientFn, Learner, LearnerError, Row, Update, Updated};
use turnwise_trajectory::PolicyVersion;

use crate::published::Published;
use crate::shares::Shares;
use crate::trainer::{LearnerSettings, LearnerState};
use crate::{AdamW, CandlePolicy, Decoder, EngineSettings, ModelError, threads};

/// A backward pass recurses through the graph; unused stack costs only address space.
pub(crate) const STACK_BYTES: usize = 64 << 20;

/// A handle to the learner's thread, which owns weights, graph and optimiser.
///
/// No kernel runs on the async runtime. The thread ends when the handle is dropped. A call whose future is dropped runs
/// to its end and its answer is discarded, except that [`accumulate`](Learner::accumulate) then adds no gradient.
///
/// `save` writes `config.json`, `model.safetensors` (both for transformers) and `optimizer.safetensors`; `load` reads
/// them and discards an accumulated gradient. Accumulated gradients are not saved.
///
/// ```
/// use turnwise_candle::{AdamW, CandleLearner, Decoder, DecoderConfig};
/// use turnwise_training::{Learner, Row, Target, Update};
///
/// # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
/// # runtime.block_on(async {
/// let model = Decoder::random(DecoderConfig::small(32), 1)?;
/// let mut learner = CandleLearner::new(model, AdamW::default())?;
/// learner.check_gradients().await?;
///
/// let targets = vec![Target { position: 2, temperature: 1.0 }];
/// let row = Row { ids: vec![1, 2, 3], targets, ..Row::default() };
/// // The loss is the negative log-likelihood: its gradient is -1 for every target.
/// learner.accumulate(&[row], &mut |logprobs| Ok(vec![vec![-1.0; logprobs[0].len()]])).await?;
/// let update = Update { learning_rate: 1e-3, max_grad_norm: 1.0 };
/// assert!(learner.step(update).await?.applied);
/// assert_eq!(learner.publish().await?.0, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct CandleLearner {
    calls: mpsc::Sender<Call>,
    published: Published,
    meter: Meter,
}

type Call = Box<dyn FnOnce(&mut LearnerState) + Send>;

impl CandleLearner {
    /// Starts the thread; the model's weights are version 0.
    ///
    /// # Errors
    /// As [`Self::with_settings`].
    pub fn new(model: Decoder, optimizer: AdamW) -> Result<Self, ModelError> {
        Self::with_settings(model, optimizer, LearnerSettings::default())
    }

    /// Starts the thread with explicit settings; the model's weights are version 0.
    ///
    /// # Errors
    /// [`ModelError::Settings`] when the model's operations do not support the settings, [`ModelError::Compute`] when a
    /// device has no room for gradients and moments, and [`ModelError::Threads`] when the system starts no thread.
    pub fn with_settings(
        model: Decoder,
        optimizer: AdamW,
        settings: LearnerSettings,
    ) -> Result<Self, ModelError> {
        threads::check(settings.threads, "the learner")?;
        let mut trainer = LearnerState::new(model, optimizer, settings)?;
        let (published, meter) = (trainer.published(), trainer.meter());
        let pool = ThreadPoolBuilder::new()
            .num_threads(settings.threads)
            .stack_size(STACK_BYTES)
            .thread_name(|index| format!("candle-learner-{index}"));
        // Its message repeats its cause.
        let refused = |error: ThreadPoolBuildError| {
            ModelError::threads(settings.threads, "the learner", error.to_string())
        };
        let pool = pool.build().map_err(refused)?;
        let (calls, waiting) = mpsc::channel::<Call>();
        let work = move || {
            for call in waiting {
                pool.install(|| call(&mut trainer));
            }
        };
        let thread = thread::Builder::new().name("candle-learner".to_owned());
        thread
            .spawn(work)
            .map_err(|error| ModelError::threads(settings.threads, "the learner", error))?;
        Ok(Self { calls, published, meter })
    }

    /// Returns the progress of a running [`Learner::save`] or [`Learner::load`], in bytes.
    #[must_use]
    pub fn meter(&self) -> Meter {
        self.meter.clone()
    }

    /// Returns the time of all calls so far, by kind of work.
    ///
    /// # Errors
    /// When the learner's thread has stopped.
    pub async fn shares(&self) -> Result<Shares, LearnerError> {
        self.ask(|trainer| Ok(trainer.shares())).await
    }

    /// Creates an engine that samples with the weights that this learner published last. Until the first engine asks, no weights
    /// are packed; if they changed since the last publication, that engine gets them as a new version.
    ///
    /// Waits for the learner's thread, which packs the weights.
    ///
    /// # Errors
    /// [`ModelError::Threads`] when the system starts no thread, and [`ModelError::Compute`] when weights cannot be packed, or a
    /// follower refuses them.
    pub fn policy(&self, settings: EngineSettings) -> Result<CandlePolicy, ModelError> {
        let (reply, answer) = mpsc::channel();
        let sent = self.send(move |trainer| {
            // The caller waits for the answer.
            let _ = reply.send(trainer.offer(settings.weights));
        });
        let offered = sent.and_then(|()| answer.recv().map_err(|_| stopped())?);
        let first = offered.map_err(|error| ModelError::Compute(Box::new(error)))?;
        CandlePolicy::start(self.published.clone(), first, settings)
    }

    /// Keeps a copy of the current weights as the reference policy of [`Learner::reference_logprobs`], at the cost of
    /// their memory. Call it before the first step (and before [`Learner::load`] when a run continues) to keep the
    /// initial weights.
    ///
    /// # Errors
    /// When the weights cannot be copied.
    pub async fn keep_reference(&self) -> Result<(), LearnerError> {
        self.ask(LearnerState::keep_reference).await
    }

    /// Calls `follower` with a version and its weights: now, and again in each [`Learner::publish`] and
    /// [`Learner::load`] before they return. This is how weights reach other engines. Between a step and its
    /// publication, the current weights already include the step.
    ///
    /// The follower runs on the learner's thread, which waits for it. Weights that it refuses are not published.
    ///
    /// # Errors
    /// When the follower refuses the current weights; it is not called again then.
    ///
    /// ```
    /// use turnwise_candle::{AdamW, CandleLearner, Decoder, DecoderConfig};
    /// use turnwise_training::Learner;
    ///
    /// # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    /// # runtime.block_on(async {
    /// let model = Decoder::random(DecoderConfig::small(32), 1)?;
    /// let mut learner = CandleLearner::new(model, AdamW::default())?;
    /// let (told, seen) = std::sync::mpsc::channel();
    /// learner.on_publish(move |version, model| Ok(told.send((version.0, model.n_parameters()))?)).await?;
    /// learner.publish().await?;
    /// assert_eq!(seen.try_iter().map(|(version, _)| version).collect::<Vec<_>>(), [0, 1]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn on_publish(
        &self,
        follower: impl FnMut(PolicyVersion, &Decoder) -> Result<(), Box<dyn Error + Send + Sync>>
        + Send
        + 'static,
    ) -> Result<(), LearnerError> {
        self.ask(|trainer| trainer.follow(Box::new(follower))).await
    }

    async fn ask<R: Send + 'static>(
        &self,
        call: impl FnOnce(&mut LearnerState) -> Result<R, LearnerError> + Send + 'static,
    ) -> Result<R, LearnerError> {
        let (reply, answer) = oneshot::channel();
        self.send(move |trainer| {
            // The caller may have dropped its future.
            let _ = reply.send(call(trainer));
        })?;
        answer.await.map_err(|_| stopped())?
    }

    fn send(
        &self,
        call: impl FnOnce(&mut LearnerState) + Send + 'static,
    ) -> Result<(), LearnerError> {
        self.calls.send(Box::new(call)).map_err(|_| stopped())
    }
}

#[async_trait]
impl Learner for CandleLearner {
    fn version(&self) -> PolicyVersion {
        self.published.version()
    }

    async fn check_gradients(&mut self) -> Result<(), LearnerError> {
        self.ask(|trainer| trainer.check_gradients()).await
    }

    async fn logprobs(&mut self, rows: &[Row]) -> Result<Vec<Vec<f32>>, LearnerError> {
        let rows = rows.to_vec();
        self.ask(move |trainer| trainer.logprobs(&rows)).await
    }

    async fn reference_logprobs(&mut self, rows: &[Row]) -> Result<Vec<Vec<f32>>, LearnerError> {
        let rows = rows.to_vec();
        self.ask(move |trainer| trainer.reference_logprobs(&rows)).await
    }

    async fn accumulate(
        &mut self,
        rows: &[Row],
        gradient: &mut GradientFn<'_>,
    ) -> Result<(), LearnerError> {
        let rows = rows.to_vec();
        let (logprobs_reply, logprobs) = oneshot::channel();
        let (coefficients, awaited) = oneshot::channel::<Vec<f32>>();
        let (done_reply, done) = oneshot::channel();
        self.send(move |trainer| {
            let pending = match trainer.forward(&rows) {
                Ok((logprobs, pending)) => {
                    let _ = logprobs_reply.send(Ok(logprobs));
                    pending
                }
                Err(error) => return drop(logprobs_reply.send(Err(error))),
            };
            // The objective runs on the caller's side. If it fails or is dropped, the channel closes and nothing is
            // added.
            if let Ok(coefficients) = awaited.blocking_recv() {
                let _ = done_reply.send(trainer.backward(pending, &coefficients));
            }
        })?;
        let logprobs = logprobs.await.map_err(|_| stopped())??;
        let answered = gradient(&logprobs).map_err(LearnerError::Gradient)?;
        check_shape(&logprobs, &answered)?;
        coefficients.send(answered.concat()).map_err(|_| stopped())?;
        done.await.map_err(|_| stopped())?
    }

    async fn step(&mut self, update: Update) -> Result<Updated, LearnerError> {
        self.ask(move |trainer| trainer.step(update)).await
    }

    async fn publish(&mut self) -> Result<PolicyVersion, LearnerError> {
        self.ask(LearnerState::publish).await
    }

    async fn save(&mut self, directory: &Path) -> Result<(), LearnerError> {
        let directory = directory.to_owned();
        self.ask(move |trainer| trainer.save(&directory)).await
    }

    async fn load(&mut self, directory: &Path, version: PolicyVersion) -> Result<(), LearnerError> {
        let directory = directory.to_owned();
        self.ask(move |trainer| trainer.load(&directory, version)).await
    }
}

impl fmt::Debug for CandleLearner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("CandleLearner")
            .field("version", &self.version())
            .finish_non_exhaustive()
    }
}

fn check_shape(logprobs: &[Vec<f32>], gradients: &[Vec<f32>]) -> Result<(), LearnerError> {
    let lengths = |rows: &[Vec<f32>]| rows.iter().map(Vec::len).collect::<Vec<_>>();
    if lengths(logprobs) == lengths(gradients) {
        return Ok(());
    }
    Err(LearnerError::Gradient("there must be one number for every log-probability".into()))
}

fn stopped() -> LearnerError {
    LearnerError::failed("reach the learner", "its thread has stopped")
}
