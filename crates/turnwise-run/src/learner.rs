//! The learner that the settings name.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use serde_json::{Map, Value};
use turnwise_candle::CandleLearner;
use turnwise_environment::{async_trait, derive_seed};
use turnwise_remote::{Secret, Server, TinkerLearner, TinkerSettings};
use turnwise_rollout::{Meter, Policy};
use turnwise_training::{GradientFn, Learner, LearnerError, Row, Update, Updated};
use turnwise_trajectory::PolicyVersion;

use crate::config::{Config, EngineName};
use crate::failure::Failure;
use crate::remote::AdapterEngine;

/// The learner of a run.
pub(crate) enum RunLearner {
    /// In this process.
    Candle(CandleLearner),
    /// On a server.
    Tinker(Box<OnTinker>),
}

/// A learner on a Tinker server, with the engine that serves its adapters.
pub(crate) struct OnTinker {
    learner: TinkerLearner,
    /// `None` if the server samples itself.
    engine: Option<AdapterEngine>,
    /// The base model of the adapters, as it is called on this machine.
    base: PathBuf,
    /// Stands still: weights do not pass through here.
    meter: Meter,
}

impl OnTinker {
    async fn publish(&mut self) -> Result<PolicyVersion, LearnerError> {
        let version = self.learner.publish().await?;
        self.serve().await?;
        Ok(version)
    }

    /// Gives the engine what was published.
    async fn serve(&mut self) -> Result<(), LearnerError> {
        let Some(engine) = &mut self.engine else { return Ok(()) };
        let served = engine.publish(&mut self.learner).await;
        served.map_err(|error| LearnerError::failed("give the engine new adapters", error))
    }

    /// Writes a checkpoint whose adapter names the model on this machine, so that it can be evaluated here.
    async fn save(&mut self, directory: &Path) -> Result<(), LearnerError> {
        self.learner.save(directory).await?;
        let named = name_base(&directory.join("adapter_config.json"), &self.base);
        named.map_err(|error| LearnerError::failed("name the adapter's base model", error))
    }

    async fn load(&mut self, directory: &Path, version: PolicyVersion) -> Result<(), LearnerError> {
        self.learner.load(directory, version).await?;
        self.serve().await
    }
}

/// Writes the base model into the configuration of an adapter, if there is one.
fn name_base(path: &Path, base: &Path) -> io::Result<()> {
    let Ok(text) = fs::read(path) else { return Ok(()) };
    let mut config: Map<String, Value> = serde_json::from_slice(&text)?;
    config.insert("base_model_name_or_path".to_owned(), base.to_string_lossy().into());
    fs::write(path, serde_json::to_vec_pretty(&config)?)
}

impl RunLearner {
    /// Connects to the Tinker server that the settings name, and to the engine if it is another, for the run in `run`.
    /// Returns the policy too.
    pub(crate) async fn tinker(
        config: &Config,
        adapters: u64,
        run: &Path,
    ) -> Result<(Self, Arc<dyn Policy>), Failure> {
        let engine = match engine_server(config) {
            Some(server) => {
                let settings = config.rollout.server().cloned().unwrap_or_default();
                Some(AdapterEngine::connect(config, server, &settings, run).await?)
            }
            None => None,
        };
        let learner = connect(config, adapters).await?;
        let policy: Arc<dyn Policy> = match &engine {
            Some(engine) => Arc::new(engine.policy()),
            None => Arc::new(learner.policy()),
        };
        let base = config.model.directory.clone().unwrap_or_default();
        let mut learner = OnTinker { learner, engine, base, meter: Meter::default() };
        learner.serve().await.map_err(|error| Failure::refused_by(&error))?;
        Ok((Self::Tinker(Box::new(learner)), policy))
    }

    /// Returns the progress of a running [`Learner::save`] or [`Learner::load`], in bytes.
    pub(crate) fn meter(&self) -> Meter {
        match self {
            Self::Candle(learner) => learner.meter(),
            Self::Tinker(remote) => remote.meter.clone(),
        }
    }

    /// Keeps the current weights as the reference policy.
    pub(crate) async fn keep_reference(&mut self) -> Result<(), LearnerError> {
        match self {
            Self::Candle(learner) => learner.keep_reference().await,
            Self::Tinker(remote) => remote.learner.keep_reference().await,
        }
    }

    fn inner(&mut self) -> &mut dyn Learner {
        match self {
            Self::Candle(learner) => learner,
            Self::Tinker(remote) => &mut remote.learner,
        }
    }
}

/// Returns the server that samples instead of the learner's, if there is one.
fn engine_server(config: &Config) -> Option<Server> {
    match config.rollout.engine {
        EngineName::Vllm => Some(Server::Vllm),
        EngineName::Sglang => Some(Server::Sglang),
        EngineName::Candle | EngineName::Gguf => None,
    }
}

async fn connect(config: &Config, adapters: u64) -> Result<TinkerLearner, Failure> {
    let refused = |error: &(dyn Error + 'static)| Failure::refused_by(error);
    let chosen = config.train.tinker.clone().unwrap_or_default();
    let key = chosen.key_file.as_deref().map(Secret::from_file).transpose();
    let key = key.map_err(|error| refused(&error))?;
    let optimizer = config.optimizer;
    let settings = TinkerSettings {
        // The protocol has 32 bits with a sign.
        seed: (derive_seed(config.run.seed, adapters) >> 33) as u32,
        beta1: optimizer.beta1,
        beta2: optimizer.beta2,
        epsilon: optimizer.epsilon,
        weight_decay: optimizer.weight_decay,
        ..chosen
    };
    let learner = TinkerLearner::connect(settings, key).await;
    learner.map_err(|error| {
        refused(&error).help("start the server, or set train.tinker.url to where it is")
    })
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Learner for RunLearner {
    fn version(&self) -> PolicyVersion {
        match self {
            Self::Candle(learner) => learner.version(),
            Self::Tinker(remote) => remote.learner.version(),
        }
    }

    async fn check_gradients(&mut self) -> Result<(), LearnerError> {
        self.inner().check_gradients().await
    }

    async fn logprobs(&mut self, rows: &[Row]) -> Result<Vec<Vec<f32>>, LearnerError> {
        self.inner().logprobs(rows).await
    }

    async fn reference_logprobs(&mut self, rows: &[Row]) -> Result<Vec<Vec<f32>>, LearnerError> {
        self.inner().reference_logprobs(rows).await
    }

    async fn accumulate(
        &mut self,
        rows: &[Row],
        gradient: &mut GradientFn<'_>,
    ) -> Result<(), LearnerError> {
        self.inner().accumulate(rows, gradient).await
    }

    async fn step(&mut self, update: Update) -> Result<Updated, LearnerError> {
        self.inner().step(update).await
    }

    async fn publish(&mut self) -> Result<PolicyVersion, LearnerError> {
        match self {
            Self::Candle(learner) => learner.publish().await,
            Self::Tinker(remote) => remote.publish().await,
        }
    }

    async fn save(&mut self, directory: &Path) -> Result<(), LearnerError> {
        match self {
            Self::Candle(learner) => learner.save(directory).await,
            Self::Tinker(remote) => remote.save(directory).await,
        }
    }

    async fn load(&mut self, directory: &Path, version: PolicyVersion) -> Result<(), LearnerError> {
        match self {
            Self::Candle(learner) => learner.load(directory, version).await,
            Self::Tinker(remote) => remote.load(directory, version).await,
        }
    }
}
