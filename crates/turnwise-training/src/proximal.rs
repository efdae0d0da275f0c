use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use turnwise_objective::{CorrectionLevel, CorrectionRule, ObjectiveError, correction_weights};

use crate::policy_gradient::{Mismatch, compare};
use crate::{Batch, Learner, LearnerError};

/// Which log-probabilities stand in the denominator of the ratio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Behavior {
    /// Those the engine recorded when it drew the tokens, whichever weights drew them.
    #[default]
    Recorded,
    /// Those of the weights at the start of the step, recomputed by the trainer. What lies between them and the recorded
    /// ones becomes a detached weight on the advantages.
    Recomputed(Correction),
}

/// The weight of a token, for what lies between the trainer before its first step and the engine that drew it.
///
/// ```text
/// r_t = π_trainer(y_t) / π_recorded(y_t)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Correction {
    /// Which tokens share a weight.
    #[serde(default)]
    pub over: Stretch,
    /// What becomes of a weight that is too large or too small.
    pub bound: Bound,
}

/// Which tokens of a ratio group share a weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stretch {
    /// Each its own, `r_t`.
    Token,
    /// Those that one version drew, by the geometric mean of `r_t`.
    #[default]
    Version,
    /// All, by the geometric mean of `r_t`.
    Sequence,
    /// All, by the product of `r_t`: unbiased, with a variance that grows with length.
    SequenceProduct,
}

/// What becomes of a weight that is too large or too small.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// At most this: truncated importance sampling (Yao et al. 2025). 2 is usual.
    Truncate(f64),
    /// Outside of these two the token keeps its place in n and s and loses its gradient: masked importance sampling
    /// (arXiv 2510.18855, where they are 0.5 and 5).
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
    /// One weight for each stretch that a version drew, at most `max`.
    #[must_use]
    pub fn truncated(max: f64) -> Self {
        Self { over: Stretch::default(), bound: Bound::Truncate(max) }
    }

    /// Whether weights can be bounded like this.
    ///
    /// # Errors
    /// When a bound is not finite, is below 0, or two of them are not in order.
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

/// Replaces the recorded log-probabilities by the learner's own and weights the advantages. Returns how far the two were apart,
/// on tokens that the learner's weights have drawn.
///
/// # Errors
/// When the learner fails, or a log-probability is not finite.
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
