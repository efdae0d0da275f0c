use std::error::Error;
use std::path::Path;

use async_trait::async_trait;
use turnwise_trajectory::PolicyVersion;

use crate::Row;

/// A function from log-probabilities to the gradient of a loss with respect to each of them; both `[rows][targets]`.
pub type GradientFn<'a> =
    dyn FnMut(&[Vec<f32>]) -> Result<Vec<Vec<f32>>, Box<dyn Error + Send + Sync>> + Send + 'a;

/// One optimiser step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// The learning rate of this step.
    pub learning_rate: f64,
    /// The Euclidean norm to which a larger gradient is scaled down; infinity disables clipping.
    pub max_grad_norm: f64,
}

/// The report of an optimiser step.
#[derive(Clone, Debug, PartialEq)]
pub struct Updated {
    /// The Euclidean norm of the accumulated gradient over all parameters, before clipping.
    pub grad_norm: f64,
    /// False if the gradient was not finite; the weights are then unchanged.
    pub applied: bool,
    /// The first parameter whose gradient was not finite, if the learner knows it.
    pub not_finite: Option<String>,
}

/// The training side: a model that computes log-probabilities and takes their gradients.
///
/// A loss crosses this boundary as numbers. The learner computes log-probabilities, the caller's objective returns the
/// gradient of the loss with respect to each of them, and the learner back-propagates it to the weights. The learner
/// knows no objective and no advantage, so one learner serves all objectives, and can be a client of a remote process.
///
/// # Contract
///
/// - The log-probability of a target is that of `ids[position]` given `ids[..position]`, under logits divided by the
///   target's temperature. In nats.
/// - If the row has the ids that truncation kept for a target, the softmax runs over those alone; a learner that cannot
///   do that refuses the row.
/// - `accumulate` adds to the gradient; only `step` changes the weights or clears the gradient.
/// - `publish` hands the current weights to the matching policies, and is the only method that raises the version.
///
/// # Who publishes
///
/// Policies sample with published weights alone, so weights that were trained are unknown to them until `publish`.
/// [`Trainer::step`](crate::Trainer::step) publishes after its optimiser steps. A program that trains outside of it,
/// such as a warm start with [`imitate_step`](crate::imitate_step), calls `publish` afterwards; otherwise rollouts and
/// evaluations continue with the earlier weights. Take the policy of a learner (`CandleLearner::policy`) before the
/// learner moves into [`Parts`](crate::Parts).
///
/// # Example
///
/// One step that makes a token more probable, and its publication:
///
/// ```
/// use turnwise_rollout::Policy;
/// use turnwise_testkit::TabularModel;
/// use turnwise_training::{Learner, Row, Target, Update};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), turnwise_training::LearnerError> {
/// let mut learner = TabularModel::new(3);
/// let policy = learner.clone(); // shares the published weights
/// // The token 2 after the prompt [7].
/// let target = Target { position: 1, temperature: 1.0 };
/// let row = Row { ids: vec![7, 2], targets: vec![target], ..Row::default() };
/// let rows = [row];
///
/// let before = learner.logprobs(&rows).await?[0][0];
/// // The loss is -log p, and its gradient with respect to log p is -1.
/// learner.accumulate(&rows, &mut |logprobs| Ok(vec![vec![-1.0]; logprobs.len()])).await?;
/// learner.step(Update { learning_rate: 1.0, max_grad_norm: f64::INFINITY }).await?;
/// assert!(learner.logprobs(&rows).await?[0][0] > before);
///
/// assert_eq!(Policy::version(&policy).0, 0); // the policy does not know yet
/// learner.publish().await?;
/// assert_eq!(Policy::version(&policy).0, 1);
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait Learner: Send {
    /// Returns the last published version.
    fn version(&self) -> PolicyVersion;

    /// Returns an error if a trainable parameter would get no gradient, which no other check would show.
    ///
    /// # Errors
    /// With the names of those parameters.
    async fn check_gradients(&mut self) -> Result<(), LearnerError>;

    /// Computes log-probabilities under the current weights, without a gradient. `[rows][targets]`
    ///
    /// # Errors
    /// If a row cannot be computed.
    async fn logprobs(&mut self, rows: &[Row]) -> Result<Vec<Vec<f32>>, LearnerError>;

    /// Computes log-probabilities under the reference policy, without a gradient. `[rows][targets]`
    ///
    /// # Errors
    /// [`LearnerError::NoReference`] unless the learner keeps reference weights, or if a row cannot be computed.
    async fn reference_logprobs(&mut self, rows: &[Row]) -> Result<Vec<Vec<f32>>, LearnerError> {
        let _ = rows;
        Err(LearnerError::NoReference)
    }

    /// Computes log-probabilities, passes them to `gradient`, and accumulates the returned gradient.
    ///
    /// # Errors
    /// If a row cannot be computed, or `gradient` fails.
    async fn accumulate(
        &mut self,
        rows: &[Row],
        gradient: &mut GradientFn<'_>,
    ) -> Result<(), LearnerError>;

    /// Updates the weights by the accumulated gradient and clears it.
    ///
    /// # Errors
    /// [`LearnerError::NotFinite`] if a weight becomes NaN or infinite, and if the optimiser fails.
    async fn step(&mut self, update: Update) -> Result<Updated, LearnerError>;

    /// Publishes the current weights to the policy and returns their version.
    ///
    /// # Errors
    /// If the weights cannot be handed over.
    async fn publish(&mut self) -> Result<PolicyVersion, LearnerError>;

    /// Writes weights and optimiser state into an existing directory.
    ///
    /// # Errors
    /// [`LearnerError::NotFinite`] for a number that is NaN or infinite, which is never written, and if the files
    /// cannot be written.
    async fn save(&mut self, directory: &Path) -> Result<(), LearnerError>;

    /// Reads the files that `save` wrote, and publishes the weights as `version`.
    ///
    /// # Errors
    /// If the files do not fit this learner.
    async fn load(&mut self, directory: &Path, version: PolicyVersion) -> Result<(), LearnerError>;
}

/// An error of a learner.
#[derive(Debug, thiserror::Error)]
pub enum LearnerError {
    /// Some trainable parameters get no gradient.
    #[error("cannot train: no gradient reaches {}", names.join(", "))]
    NoGradient {
        /// The names of the parameters.
        names: Vec<String>,
    },
    /// A row that the model cannot compute.
    #[error("cannot compute row {row}: {reason}")]
    BadRow {
        /// The index of the row.
        row: usize,
        /// The cause.
        reason: String,
    },
    /// The learner keeps no reference weights.
    #[error(
        "cannot compute log-probabilities of the reference policy: this learner keeps no reference; have it keep its starting \
         weights, or set the weight of the penalty to 0"
    )]
    NoReference,
    /// A weight, or a number computed from the weights, is NaN or infinite. The learner must not be trained further:
    /// load an earlier checkpoint.
    #[error("cannot {action}: {reason}")]
    NotFinite {
        /// The attempted action, as an imperative.
        action: String,
        /// The tensor with the first such number.
        reason: String,
    },
    /// The caller's gradient function failed.
    #[error("cannot compute the loss")]
    Gradient(#[source] Box<dyn Error + Send + Sync>),
    /// The model or its storage failed.
    #[error("cannot {action}")]
    Failed {
        /// The attempted action, as an imperative.
        action: String,
        /// The cause.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl LearnerError {
    /// Creates [`LearnerError::Failed`] for an action, as an imperative.
    #[must_use]
    pub fn failed(
        action: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::Failed { action: action.into(), source: source.into() }
    }
}
