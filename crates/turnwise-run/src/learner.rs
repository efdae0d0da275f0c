//! The learner that the settings name.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use turnwise_candle::CandleLearner;
use turnwise_environment::{async_trait, derive_seed};
use turnwise_remote::{Secret, TinkerLearner, TinkerSettings};
use turnwise_rollout::{Meter, Policy};
use turnwise_training::{GradientFn, Learner, LearnerError, Row, Update, Updated};
use turnwise_trajectory::PolicyVersion;

use crate::config::Config;
use crate::failure::Failure;

/// The learner of a run.
pub(crate) enum RunLearner {
    /// In this process.
    Candle(CandleLearner),
    /// On a server, with a meter that stands still: its weights do not pass through here.
    Tinker(Box<TinkerLearner>, Meter),
}

impl RunLearner {
    /// Connects to the Tinker server that the settings name. Returns its sampler too.
    pub(crate) async fn tinker(
        config: &Config,
        adapters: u64,
    ) -> Result<(Self, Arc<dyn Policy>), Failure> {
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
        let learner = learner.map_err(|error| refused(&error))?;
        let policy = Arc::new(learner.policy());
        Ok((Self::Tinker(Box::new(learner), Meter::default()), policy))
    }

    /// Returns the progress of a running [`Learner::save`] or [`Learner::load`], in bytes.
    pub(crate) fn meter(&self) -> Meter {
        match self {
            Self::Candle(learner) => learner.meter(),
            Self::Tinker(_, meter) => meter.clone(),
        }
    }

    /// Keeps the current weights as the reference policy.
    pub(crate) async fn keep_reference(&mut self) -> Result<(), LearnerError> {
        match self {
            Self::Candle(learner) => learner.keep_reference().await,
            Self::Tinker(learner, _) => learner.keep_reference().await,
        }
    }

    fn inner(&mut self) -> &mut dyn Learner {
        match self {
            Self::Candle(learner) => learner,
            Self::Tinker(learner, _) => &mut **learner,
        }
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Learner for RunLearner {
    fn version(&self) -> PolicyVersion {
        match self {
            Self::Candle(learner) => learner.version(),
            Self::Tinker(learner, _) => learner.version(),
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
        self.inner().publish().await
    }

    async fn save(&mut self, directory: &Path) -> Result<(), LearnerError> {
        self.inner().save(directory).await
    }

    async fn load(&mut self, directory: &Path, version: PolicyVersion) -> Result<(), LearnerError> {
        self.inner().load(directory, version).await
    }
}
