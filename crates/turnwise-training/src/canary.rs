use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use turnwise_rollout::{Policy, PolicyError, SampleRequest, SessionId};
use turnwise_trajectory::{PolicyVersion, Sampling, TokenId};

use crate::{Learner, LearnerError, Row, Target};

/// A canary: a few tokens that are sampled after every publication and recomputed by the trainer. Without it, an engine
/// that never received the weights looks like staleness (verl#7495 lost two months to one).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Canary {
    /// The number of tokens.
    pub tokens: usize,
    /// The largest accepted difference in nats. Rounding of f32 stays below 1e-3; engines of other precision need more.
    pub tolerance: f64,
}

impl Default for Canary {
    fn default() -> Self {
        Self { tokens: 4, tolerance: 0.05 }
    }
}

impl Canary {
    /// Returns the largest difference in nats; `None` if the engine did not answer, which later requests will show.
    ///
    /// # Errors
    /// If the engine samples with other weights than the published ones, or the learner fails.
    pub(crate) async fn check(
        &self,
        policy: &dyn Policy,
        learner: &mut dyn Learner,
        prompt: &[TokenId],
    ) -> Result<Option<f64>, CanaryError> {
        let version = learner.version();
        let request = SampleRequest {
            prompt: prompt.to_vec(),
            stop: Vec::new(),
            max_tokens: self.tokens,
            sampling: Sampling::default(),
            seed: SESSION.0,
            first_index: u64::from(version.0),
            min_version: version,
            session: SESSION,
        };
        let sample = policy.sample(request).await;
        policy.release(SESSION);
        let tokens = match sample {
            Ok(sample) => sample.tokens,
            Err(PolicyError::Refused(reason)) => {
                return Err(CanaryError::Refused { version, reason });
            }
            Err(PolicyError::NotFinite(reason)) => {
                return Err(CanaryError::NotFinite { version, reason });
            }
            Err(error) => {
                tracing::warn!(%error, "the engine did not answer after new weights");
                return Ok(None);
            }
        };
        if let Some(token) = tokens.iter().find(|token| token.version != version) {
            return Err(CanaryError::Version { drawn: token.version, published: version });
        }
        let mut row = Row { ids: prompt.to_vec(), ..Row::default() };
        for token in &tokens {
            row.targets.push(Target { position: row.ids.len(), temperature: 1.0 });
            row.ids.push(token.id);
        }
        let logprobs = learner.logprobs(&[row]).await?;
        let differences = tokens.iter().zip(logprobs.iter().flatten());
        let gap = differences
            .map(|(token, logprob)| (f64::from(token.logprob) - f64::from(*logprob)).abs())
            .fold(0.0, largest_or_nan);
        // A gap of NaN fails this comparison too.
        if gap <= self.tolerance { Ok(Some(gap)) } else { Err(CanaryError::Gap { version, gap }) }
    }
}

/// Returns the larger number, or NaN if one of them is NaN; `f64::max` would drop it.
fn largest_or_nan(one: f64, other: f64) -> f64 {
    if one.is_nan() || other.is_nan() { f64::NAN } else { one.max(other) }
}

/// The session of the canary. An episode has the same id with a probability of 2^-64.
const SESSION: SessionId = SessionId(0x6361_6e61_7279);

/// The engine does not serve the published weights.
#[derive(Debug, thiserror::Error)]
pub enum CanaryError {
    /// The engine's tokens carry another version.
    #[error(
        "cannot sample with the new weights: the engine serves {drawn} after {published} was published"
    )]
    Version {
        /// The version that the engine serves.
        drawn: PolicyVersion,
        /// The version that the learner published.
        published: PolicyVersion,
    },
    /// The engine refuses to serve the new version.
    #[error("cannot sample with the new weights {version}: the engine refuses: {reason}")]
    Refused {
        /// The version that the learner published.
        version: PolicyVersion,
        /// The engine's reason.
        reason: String,
    },
    /// The logits of the new weights are NaN or infinite.
    #[error("cannot sample with the new weights {version}: {reason}")]
    NotFinite {
        /// The version that the learner published.
        version: PolicyVersion,
        /// The weight that causes it.
        reason: String,
    },
    /// The engine's log-probabilities are those of other weights.
    #[error(
        "cannot sample with the new weights {version}: engine and trainer differ by {gap} nats on the same tokens"
    )]
    Gap {
        /// The version that the learner published.
        version: PolicyVersion,
        /// The largest difference in nats.
        gap: f64,
    },
    /// The learner failed.
    #[error(transparent)]
    Learner(#[from] LearnerError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_after_a_nan_does_not_hide_it() {
        let largest = |gaps: [f64; 2]| gaps.into_iter().fold(0.0, largest_or_nan);
        assert_eq!(largest([0.2, 0.1]), 0.2);
        assert!(largest([f64::NAN, 0.1]).is_nan());
        assert!(largest([0.1, f64::NAN]).is_nan());
    }
}
