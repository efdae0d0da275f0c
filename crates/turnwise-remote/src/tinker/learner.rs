//! A learner whose model is on a Tinker server.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use turnwise_training::{GradientFn, Learner, LearnerError, Row, Update, Updated};
use turnwise_trajectory::PolicyVersion;

use super::adapter;
use super::error::TinkerError;
use super::policy::TinkerPolicy;
use super::published::{Newest, Published};
use super::record::Record;
use super::remote_model::{AdamStep, RemoteModel};
use super::scale::{Scale, ScaleError};
use super::session::Session;
use super::settings::TinkerSettings;
use super::shifted_row::ShiftedRow;
use super::window::{Weighted, Window, requests};
use crate::fault::ServerFault;
use crate::secret::Secret;

/// A learner that trains adapters on a server that speaks Tinker's protocol.
///
/// - **The gradient is exactly that of the caller's objective.** Log-probabilities come from the server, their gradient from
///   the caller, and the server back-propagates it with its loss `importance_sampling` at a ratio of 1. How the server adds up
///   sequences is measured when it is connected; a server that fits no known rule is refused.
/// - **Clipping is exact on servers that cannot clip.** Before a step that may be clipped, weights and optimiser state are saved
///   on the server. If the norm is above the limit, a new model with these weights takes the step again, with the gradient
///   scaled down. Without a limit (1e30 or more) this costs nothing.
/// - A request that was lost is repeated under its number, so that the server does nothing twice. If it stays unknown whether
///   the server did something, all further calls are refused until [`Learner::load`].
/// - Checkpoints name weights that the server keeps, and hold the published adapter for PEFT.
///
/// Not supported: temperatures other than 1, and truncated or constrained sampling.
#[derive(Debug)]
pub struct TinkerLearner {
    session: Session,
    settings: TinkerSettings,
    model: RemoteModel,
    reference: Option<RemoteModel>,
    scale: Scale,
    window: Window,
    published: Arc<Published>,
    /// The reason why the state of the model on the server is not known.
    lost: Option<String>,
}

impl TinkerLearner {
    /// Connects to a server, measures how it scales gradients, and publishes the untrained adapters as version 0.
    ///
    /// # Errors
    /// [`TinkerError::Address`] without a usable URL, [`TinkerError::Unfit`] if the server lacks the model or its gradients
    /// have an unknown scale, and [`TinkerError::Failed`] if it fails.
    ///
    /// ```
    /// use turnwise_remote::{TinkerLearner, TinkerSettings};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let url = "http://127.0.0.1:1".to_owned();
    /// let settings = TinkerSettings { url, max_wait_s: 0.0, ..TinkerSettings::default() };
    /// let error = TinkerLearner::connect(settings, None).await.unwrap_err().to_string();
    /// assert!(error.starts_with("cannot train on the Tinker server at http://127.0.0.1:1: it does not answer"));
    /// # }
    /// ```
    pub async fn connect(
        settings: TinkerSettings,
        key: Option<Secret>,
    ) -> Result<Self, TinkerError> {
        let session = Session::open(&settings, key).await?;
        let scale = measure(&session).await?;
        let url = session.client.url();
        let failed = |action: &'static str| {
            let url = url.clone();
            move |fault: ServerFault| TinkerError::failed(action, &url, &fault)
        };
        let mut model = session.create_model().await.map_err(failed("create a model"))?;
        let path = model.save_for_sampler().await.map_err(failed("publish weights"))?;
        let published = Arc::new(Published::new(Newest { version: PolicyVersion(0), path }));
        let window = Window::default();
        let (reference, lost) = (None, None);
        Ok(Self { session, settings, model, reference, scale, window, published, lost })
    }

    /// Returns an engine that samples with the weights that this learner published last.
    #[must_use]
    pub fn policy(&self) -> TinkerPolicy {
        let client = self.session.client.clone();
        TinkerPolicy::new(client, self.published.clone(), self.settings.max_requests)
    }

    /// Keeps a second model on the server with the current weights, as the reference policy of
    /// [`Learner::reference_logprobs`].
    ///
    /// # Errors
    /// If the server cannot copy the weights.
    pub async fn keep_reference(&mut self) -> Result<(), LearnerError> {
        let action = "keep the reference policy";
        self.known(action)?;
        let saved = self.model.save().await.map_err(|fault| self.failed(action, &fault))?;
        let model = self.session.model_at(&saved).await;
        let model = model.map_err(|fault| self.failed(action, &fault))?;
        self.forget(&saved, "weights").await;
        if let Some(earlier) = self.reference.replace(model) {
            earlier.unload().await;
        }
        Ok(())
    }

    /// Writes the newest published adapter into an existing directory in the format of PEFT, which vLLM serves. It names all
    /// the modules that the adapter has tensors for.
    ///
    /// # Errors
    /// If the server cannot send it, or what it sends is not an adapter.
    pub async fn save_adapter(&self, directory: &Path) -> Result<(), TinkerError> {
        let action = "download the adapter";
        let failed =
            |fault: &ServerFault| TinkerError::failed(action, &self.session.client.url(), fault);
        let newest = self.published.newest();
        let archive = adapter::download(&self.session.client, &newest.path).await;
        adapter::unpack(&archive.map_err(|fault| failed(&fault))?, directory)
    }

    fn failed(&self, action: &str, fault: &ServerFault) -> LearnerError {
        LearnerError::failed(action, TinkerError::failed(action, &self.session.client.url(), fault))
    }

    /// Fails if the state of the model is not known.
    fn known(&self, action: &str) -> Result<(), LearnerError> {
        match &self.lost {
            Some(reason) => {
                Err(LearnerError::failed(action, TinkerError::Lost { reason: reason.clone() }))
            }
            None => Ok(()),
        }
    }

    /// Returns the log-probabilities of all predicted tokens of sequences.
    async fn score(&mut self, sequences: &[ShiftedRow]) -> Result<Vec<Vec<f32>>, LearnerError> {
        let max = self.settings.max_request_tokens;
        score(&mut self.model, sequences, max)
            .await
            .map_err(|fault| self.failed("compute log-probabilities", &fault))
    }

    /// Sends the gradient, times a factor, and applies it. Returns its norm.
    async fn apply(
        &mut self,
        window: &Window,
        factor: f64,
        learning_rate: f64,
    ) -> Result<f64, ServerFault> {
        let TinkerSettings { beta1, beta2, epsilon, weight_decay, max_request_tokens, .. } =
            self.settings;
        window.send(&mut self.model, self.scale, factor, max_request_tokens).await?;
        let step = AdamStep { learning_rate, beta1, beta2, epsilon, weight_decay };
        self.model.optim_step(step).await
    }

    /// Takes one step; if its gradient is beyond the limit, goes back to the saved weights and takes it again.
    async fn clipped(&mut self, window: &Window, update: Update) -> Result<Updated, ServerFault> {
        let Update { learning_rate, max_grad_norm } = update;
        if max_grad_norm >= NO_LIMIT {
            let grad_norm = self.apply(window, 1.0, learning_rate).await?;
            return if grad_norm.is_finite() {
                Ok(Updated { grad_norm, applied: true, not_finite: None })
            } else {
                Err(ServerFault::Wrong(format!("it applied a gradient of the norm {grad_norm}")))
            };
        }
        let before = self.model.save().await?;
        let grad_norm = self.apply(window, 1.0, learning_rate).await?;
        if !grad_norm.is_finite() || grad_norm > max_grad_norm {
            self.go_back(&before).await?;
            if grad_norm.is_finite() {
                let again = self.apply(window, max_grad_norm / grad_norm, learning_rate).await?;
                if (again - max_grad_norm).abs() > CLIPPED * max_grad_norm {
                    return Err(ServerFault::Wrong(format!(
                        "a gradient of the norm {grad_norm} that was scaled to {max_grad_norm} has {again}"
                    )));
                }
            }
        }
        self.forget(&before, "weights").await;
        Ok(Updated { grad_norm, applied: grad_norm.is_finite(), not_finite: None })
    }

    /// Continues with a model that has saved weights. The present model goes first, because a server has few places.
    async fn go_back(&mut self, path: &str) -> Result<(), ServerFault> {
        self.model.unload().await;
        self.model = self.session.model_at(path).await?;
        Ok(())
    }

    /// Publishes the current weights as a version.
    async fn publish_as(&mut self, version: PolicyVersion) -> Result<(), LearnerError> {
        let saved = self.model.save_for_sampler().await;
        let path = saved.map_err(|fault| self.failed("publish weights", &fault))?;
        let earlier = self.published.publish(Newest { version, path });
        self.forget(&earlier.path, "sampler_weights").await;
        Ok(())
    }

    /// Deletes what was saved on the server.
    async fn forget(&self, path: &str, kind: &str) {
        if let Some((model, name)) = adapter::parts(path) {
            let path = format!("/api/v1/training_runs/{model}/checkpoints/{kind}/{name}");
            self.session.client.delete(&path).await;
        }
    }
}

/// From here on a limit is none: no gradient in 32 bits that is any use has such a norm.
const NO_LIMIT: f64 = 1e30;
/// The largest relative error of the norm of a clipped gradient.
const CLIPPED: f64 = 0.01;

#[async_trait]
impl Learner for TinkerLearner {
    fn version(&self) -> PolicyVersion {
        self.published.newest().version
    }

    /// Always passes: the server trains all its adapters, and connecting showed that a gradient reaches them.
    async fn check_gradients(&mut self) -> Result<(), LearnerError> {
        Ok(())
    }

    async fn logprobs(&mut self, rows: &[Row]) -> Result<Vec<Vec<f32>>, LearnerError> {
        self.known("compute log-probabilities")?;
        let sequences = sequences(rows)?;
        Ok(of_targets(rows, &self.score(&sequences).await?))
    }

    async fn reference_logprobs(&mut self, rows: &[Row]) -> Result<Vec<Vec<f32>>, LearnerError> {
        let sequences = sequences(rows)?;
        let max = self.settings.max_request_tokens;
        let reference = self.reference.as_mut().ok_or(LearnerError::NoReference)?;
        let all = score(reference, &sequences, max).await;
        let all = all.map_err(|fault| self.failed("compute log-probabilities", &fault))?;
        Ok(of_targets(rows, &all))
    }

    async fn accumulate(
        &mut self,
        rows: &[Row],
        gradient: &mut GradientFn<'_>,
    ) -> Result<(), LearnerError> {
        self.known("compute log-probabilities")?;
        let sequences = sequences(rows)?;
        let all = self.score(&sequences).await?;
        let slopes = gradient(&of_targets(rows, &all)).map_err(LearnerError::Gradient)?;
        let lengths = rows.iter().map(|row| row.targets.len());
        if !slopes.iter().map(Vec::len).eq(lengths) {
            let reason = "the gradient has another shape than the log-probabilities";
            return Err(LearnerError::Gradient(reason.into()));
        }
        for (((sequence, logprobs), row), given) in
            sequences.into_iter().zip(all).zip(rows).zip(slopes)
        {
            let mut slopes = vec![0.0; logprobs.len()];
            for (target, slope) in row.targets.iter().zip(given) {
                slopes[target.position - 1] += slope;
            }
            self.window.push(Weighted { sequence, logprobs, slopes });
        }
        Ok(())
    }

    async fn step(&mut self, update: Update) -> Result<Updated, LearnerError> {
        let action = "take an optimiser step";
        self.known(action)?;
        let window = std::mem::take(&mut self.window);
        if !window.is_finite() {
            return Ok(Updated { grad_norm: f64::NAN, applied: false, not_finite: None });
        }
        let published = self.published.clone();
        let _alone = published.close().await;
        // Stays if this future is dropped before its end.
        self.lost = Some("a step was interrupted".to_owned());
        match self.clipped(&window, update).await {
            Ok(updated) => {
                self.lost = None;
                Ok(updated)
            }
            Err(fault) => {
                self.lost = Some(fault.to_string());
                Err(self.failed(action, &fault))
            }
        }
    }

    async fn publish(&mut self) -> Result<PolicyVersion, LearnerError> {
        self.known("publish weights")?;
        let version = PolicyVersion(self.version().0 + 1);
        self.publish_as(version).await?;
        Ok(version)
    }

    async fn save(&mut self, directory: &Path) -> Result<(), LearnerError> {
        let action = "save weights";
        self.known(action)?;
        let path = self.model.save().await.map_err(|fault| self.failed(action, &fault))?;
        let (base_model, rank) = (self.session.base_model.clone(), self.session.rank());
        let record = Record { path, base_model, rank };
        let failed = |error: TinkerError| LearnerError::failed(action, error);
        record.write(directory).map_err(failed)?;
        // Adapters that were trained since are only in what the server keeps.
        if self.published.is_open() {
            self.save_adapter(directory).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn load(&mut self, directory: &Path, version: PolicyVersion) -> Result<(), LearnerError> {
        let action = "load weights";
        let failed = |error: TinkerError| LearnerError::failed(action, error);
        let record = Record::read(directory).map_err(failed)?;
        record.check(directory, &self.session.base_model, self.session.rank()).map_err(failed)?;
        let published = self.published.clone();
        let _alone = published.close().await;
        self.lost = Some("the last checkpoint was not loaded".to_owned());
        let back = self.go_back(&record.path).await;
        back.map_err(|fault| self.failed(action, &fault))?;
        self.window = Window::default();
        self.lost = None;
        self.publish_as(version).await
    }
}

/// Measures the scale on a model that is unloaded afterwards.
async fn measure(session: &Session) -> Result<Scale, TinkerError> {
    let url = session.client.url();
    let action = "measure the scale of gradients";
    let model = session.create_model().await;
    let mut model = model.map_err(|fault| TinkerError::failed(action, &url, &fault))?;
    let scale = Scale::measure(&mut model).await;
    model.unload().await;
    let scale = scale.map_err(|error| match error {
        ScaleError::Fault(fault) => TinkerError::failed(action, &url, &fault),
        ScaleError::Unfit(reason) => TinkerError::Unfit { url, reason },
    })?;
    tracing::info!(?scale, "measured how the Tinker server adds up gradients");
    Ok(scale)
}

async fn score(
    model: &mut RemoteModel,
    sequences: &[ShiftedRow],
    max_tokens: usize,
) -> Result<Vec<Vec<f32>>, ServerFault> {
    let lengths: Vec<usize> = sequences.iter().map(ShiftedRow::len).collect();
    let mut all = Vec::with_capacity(sequences.len());
    for range in requests(&lengths, max_tokens) {
        all.extend(model.forward(&sequences[range]).await?);
    }
    Ok(all)
}

fn sequences(rows: &[Row]) -> Result<Vec<ShiftedRow>, LearnerError> {
    rows.iter().enumerate().map(|(index, row)| ShiftedRow::of(index, row)).collect()
}

/// Returns the log-probabilities of targets among those of all predicted tokens.
fn of_targets(rows: &[Row], all: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let of = |(row, all): (&Row, &Vec<f32>)| {
        row.targets.iter().map(|target| all[target.position - 1].min(0.0)).collect()
    };
    rows.iter().zip(all).map(of).collect()
}
