use std::error::Error;
use std::path::Path;

use async_trait::async_trait;
use turnwise_trajectory::PolicyVersion;

use crate::Row;

/// What turns log-probabilities into the gradient of a loss with respect to each of them; both `[rows][targets]`.
pub type GradientFn<'a> =
    dyn FnMut(&[Vec<f32>]) -> Result<Vec<Vec<f32>>, Box<dyn Error + Send + Sync>> + Send + 'a;

/// One optimiser step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// The learning rate of this step.
    pub learning_rate: f64,
    /// The gradient is scaled down to this Euclidean norm; infinity leaves it as it is.
    pub max_grad_norm: f64,
}

/// What an optimiser step did.
#[derive(Clone, Debug, PartialEq)]
pub struct Updated {
    /// Euclidean norm of the accumulated gradient over all parameters, before clipping.
    pub grad_norm: f64,
    /// False when the gradient was not finite: the weights are as they were.
    pub applied: bool,
    /// The first parameter whose gradient was not finite, where the learner knows it.
    pub not_finite: Option<String>,
}

/// The training side: a model that can be asked for log-probabilities and pushed along their gradients.
///
/// A loss crosses this boundary as numbers. The learner computes log-probabilities, the caller's objective answers with
/// the gradient of the loss with respect to each of them, and the learner carries that back to its weights. It knows no
/// objective and no advantage, so one learner serves them all, and it can be a client of something remote.
///
/// # Contract
///
/// - The log-probability of a target is that of `ids[position]` given `ids[..position]`, under logits divided by the
///   target's temperature. In nats.
/// - Where the row holds the ids that truncation kept for a target, the softmax runs over those alone; a learner that cannot
///   do that refuses the row.
/// - `accumulate` adds to the gradient; nothing but `step` changes the weights or clears the gradient.
/// - `publish` makes the current weights those that the matching policies draw with, and is the only thing that raises
///   the version.
#[async_trait]
pub trait Learner: Send {
    /// The version that was published last.
    fn version(&self) -> PolicyVersion;

    /// Refuses to go on when a trainable parameter would get no gradient, which no other check would ever show.
    ///
    /// # Errors
    /// With the names of those parameters.
    async fn check_gradients(&mut self) -> Result<(), LearnerError>;

    /// Log-probabilities under the current weights, without a gradient. `[rows][targets]`
    ///
    /// # Errors
    /// When a row cannot be computed.
    async fn logprobs(&mut self, rows: &[Row]) -> Result<Vec<Vec<f32>>, LearnerError>;

    /// Log-probabilities under the weights that a penalty keeps close to, without a gradient. `[rows][targets]`
    ///
    /// # Errors
    /// [`LearnerError::NoReference`] unless the learner was told to keep them, or when a row cannot be computed.
    async fn reference_logprobs(&mut self, rows: &[Row]) -> Result<Vec<Vec<f32>>, LearnerError> {
        let _ = rows;
        Err(LearnerError::NoReference)
    }

    /// Computes log-probabilities, shows them to `gradient`, and adds the gradient it answers.
    ///
    /// # Errors
    /// When a row cannot be computed, or `gradient` fails.
    async fn accumulate(
        &mut self,
        rows: &[Row],
        gradient: &mut GradientFn<'_>,
    ) -> Result<(), LearnerError>;

    /// Changes the weights along the accumulated gradient and clears it.
    ///
    /// # Errors
    /// [`LearnerError::NotFinite`] when it makes a weight NaN or infinite, and when the optimiser fails.
    async fn step(&mut self, update: Update) -> Result<Updated, LearnerError>;

    /// Makes the current weights the policy's and returns their version.
    ///
    /// # Errors
    /// When they cannot be handed over.
    async fn publish(&mut self) -> Result<PolicyVersion, LearnerError>;

    /// Writes weights and optimiser state into an existing directory.
    ///
    /// # Errors
    /// [`LearnerError::NotFinite`] for a number that is NaN or infinite, which no file gets, and when they cannot be written.
    async fn save(&mut self, directory: &Path) -> Result<(), LearnerError>;

    /// Reads back what `save` wrote, and publishes it as `version`.
    ///
    /// # Errors
    /// When the files do not fit this learner.
    async fn load(&mut self, directory: &Path, version: PolicyVersion) -> Result<(), LearnerError>;
}

/// Why a learner cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum LearnerError {
    /// Some trainable parameters get no gradient.
    #[error("train: no gradient reaches {}", names.join(", "))]
    NoGradient {
        /// The parameters.
        names: Vec<String>,
    },
    /// A row that the model cannot compute.
    #[error("compute row {row}: {reason}")]
    BadRow {
        /// The row.
        row: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// There are no reference weights.
    #[error(
        "compute log-probabilities of the reference policy: this learner keeps no reference; have it keep its starting \
         weights, or set the weight of the penalty to 0"
    )]
    NoReference,
    /// A weight, or what is computed from the weights, is NaN or infinite. The learner must not be trained further: load an
    /// earlier checkpoint.
    #[error("{action}: {reason}")]
    NotFinite {
        /// What was attempted.
        action: String,
        /// The tensor with the first such number.
        reason: String,
    },
    /// The caller's gradient.
    #[error("compute the loss")]
    Gradient(#[source] Box<dyn Error + Send + Sync>),
    /// The model or its storage.
    #[error("{action}")]
    Failed {
        /// What was attempted.
        action: String,
        /// Why it failed.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl LearnerError {
    /// A failure while doing something.
    #[must_use]
    pub fn failed(
        action: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::Failed { action: action.into(), source: source.into() }
    }
}
