use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use turnwise_trajectory::PolicyVersion;

use crate::{Batch, Learner, LearnerError};

/// Which log-probabilities stand in the denominator of the ratio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Behavior {
    /// Those the engine recorded when it drew the tokens, whichever weights drew them.
    #[default]
    Recorded,
    /// Those of the weights at the start of the step, recomputed by the trainer. What lies between them and the recorded
    /// ones is a weight on the advantages: detached, one for each stretch drawn by one version, and at most this.
    Recomputed {
        /// The cap of the weight, at least 1.
        max_weight: f64,
    },
}

/// Replaces the recorded log-probabilities by the learner's own and weights the advantages.
///
/// ```text
/// w = min( exp( mean_t (log π_prox − log π_recorded) ), max_weight )    over each version's tokens of a ratio group
/// ```
///
/// # Errors
/// When the learner fails.
pub async fn recompute(
    batch: &mut Batch,
    learner: &mut dyn Learner,
    max_weight: f64,
) -> Result<(), LearnerError> {
    let logprobs = learner.logprobs(&batch.rows).await?;
    let mut segments: BTreeMap<(usize, PolicyVersion), (f64, usize)> = BTreeMap::new();
    for (token, logprob) in batch.tokens.iter().flatten().zip(logprobs.iter().flatten()) {
        let (sum, n) = segments.entry((token.sequence, token.version)).or_default();
        *sum += f64::from(*logprob) - f64::from(token.behavior_logprob);
        *n += 1;
    }
    for (token, logprob) in batch.tokens.iter_mut().flatten().zip(logprobs.into_iter().flatten()) {
        let (sum, n) = segments[&(token.sequence, token.version)];
        // The cap is applied in log space, where an overflow hits it instead of becoming infinite.
        let weight = (sum / n as f64).min(max_weight.ln()).exp();
        token.advantage = (f64::from(token.advantage) * weight) as f32;
        token.behavior_logprob = logprob;
    }
    Ok(())
}
