use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use turnwise_objective::{CorrectionLevel, CorrectionRule, ObjectiveError, correction_weights};

use crate::policy_gradient::{Mismatch, compare};
use crate::{Batch, Learner, LearnerError};

/// The log-probabilities in the denominator of the ratio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Behavior {
    /// The log-probabilities that the engine recorded at sampling time, under the weights that sampled the tokens.
    #[default]
    Recorded,
    /// The log-probabilities under the weights at the start of the step, recomputed by the trainer. Their ratio to the
    /// recorded ones becomes a detached weight on the advantages.
    Recomputed(Correction),
}

/// The importance weight of a token, which corrects for the difference between the trainer before its first step and
/// the engine.
///
/// ```text
/// r_t = π_trainer(y_t) / π_recorded(y_t)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Correction {
    /// The tokens that share a weight.
    #[serde(default)]
    pub over: Stretch,
    /// The bound of the weights.
    pub bound: Bound,
}

/// The tokens of a ratio group that share a weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stretch {
    /// Each token has its own weight, `r_t`.
    Token,
    /// The tokens of one version share the geometric mean of `r_t`.
    #[default]
    Version,
    /// All tokens share the geometric mean of `r_t`.
    Sequence,
    /// All tokens share the product of `r_t`: unbiased, with a variance that grows with length.
    SequenceProduct,
}

/// The treatment of a weight that is too large or too small.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Caps the weight: truncated importance sampling (Yao et al. 2025). 2 is usual.
    Truncate(f64),
    /// Masks a token whose weight is outside of these two bounds: it counts in n and s and loses its gradient. Masked
    /// importance sampling (arXiv 2510.18855, where the bounds are 0.5 and 5).
    Mask(f64, f64),
}

impl Bound {
    fn rule(self) -> CorrectionRule {
        match self {
            Self::Truncate(max) => CorrectionRule::Truncate { max },
            Self::Mask(low, high) => CorrectionRule::Mask { low, high },
        }
    }
}

impl Correction {
    /// Returns a correction with one weight for the tokens of each version, at most `max`.
    #[must_use]
    pub fn truncated(max: f64) -> Self {
        Self { over: Stretch::default(), bound: Bound::Truncate(max) }
    }

    /// Checks the bounds.
    ///
    /// # Errors
    /// If a bound is not finite or is below 0, or the two bounds are not in order.
    pub fn check(&self) -> Result<(), ObjectiveError> {
        correction_weights(&[], &[], CorrectionLevel::Token, self.bound.rule()).map(drop)
    }

    fn weights(&self, trainer: &[f64], recorded: &[f64]) -> Result<Vec<f64>, ObjectiveError> {
        let level = match self.over {
            Stretch::Token => CorrectionLevel::Token,
            Stretch::Version | Stretch::Sequence => CorrectionLevel::GeometricMean,
            Stretch::SequenceProduct => CorrectionLevel::Sequence,
        };
        correction_weights(trainer, recorded, level, self.bound.rule())
    }
}

/// Replaces the recorded log-probabilities by the learner's and weights the advantages. Returns the mismatch of the two
/// on tokens that the learner's current weights sampled.
///
/// # Errors
/// If the learner fails, or a log-probability is not finite.
pub async fn recompute(
    batch: &mut Batch,
    learner: &mut dyn Learner,
    correction: Correction,
) -> Result<Mismatch, LearnerError> {
    let logprobs = learner.logprobs(&batch.rows).await?;
    let rows: Vec<usize> = (0..batch.rows.len()).collect();
    let mut mismatch = Mismatch::default();
    compare(batch, &rows, &logprobs, learner.version(), &mut mismatch);
    let places = batch.tokens.iter().enumerate();
    let places =
        places.flat_map(|(row, tokens)| (0..tokens.len()).map(move |target| (row, target)));
    let mut stretches: BTreeMap<_, Vec<(usize, usize)>> = BTreeMap::new();
    for (row, target) in places {
        let token = &batch.tokens[row][target];
        let version = (correction.over == Stretch::Version).then_some(token.version);
        stretches.entry((token.sequence, version)).or_default().push((row, target));
    }
    for stretch in stretches.values() {
        let of = |value: &dyn Fn(usize, usize) -> f32| -> Vec<f64> {
            stretch.iter().map(|(row, target)| f64::from(value(*row, *target))).collect()
        };
        let trainer = of(&|row, target| logprobs[row][target]);
        let recorded = of(&|row, target| batch.tokens[row][target].behavior_logprob);
        let weights = correction
            .weights(&trainer, &recorded)
            .map_err(|error| LearnerError::failed("correct for the engine", error))?;
        for ((row, target), weight) in stretch.iter().zip(weights) {
            let token = &mut batch.tokens[*row][*target];
            token.advantage = (f64::from(token.advantage) * weight) as f32;
            token.behavior_logprob = logprobs[*row][*target];
        }
    }
    Ok(mismatch)
}
