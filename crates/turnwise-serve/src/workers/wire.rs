//! What trainer and worker tell each other, as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use turnwise_rollout::{EpisodeSnapshot, PolicyError, Sample, SampleRequest, SessionId};
use turnwise_trajectory::{PolicyVersion, SampledToken, StopReason, TokenId, Trajectory};

/// What a worker needs to make the run's environments and agents itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunDescription {
    /// The settings of the run, as TOML.
    pub settings: String,
    /// The files of the model without its weights, by name: tokenizer, chat template, configuration.
    pub files: BTreeMap<String, String>,
}

/// The trainer's answer to a new worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Welcome {
    pub(super) worker: String,
    pub(super) run: RunDescription,
    /// The seconds after which a silent worker's episodes are given to others.
    pub(super) lease_s: f64,
}

/// A request for episodes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct LeaseRequest {
    pub(super) worker: String,
    pub(super) n: usize,
}

/// An episode that a worker is to advance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Lease {
    pub(super) id: String,
    /// The tokens that the episode may sample before it is suspended.
    pub(super) tokens: u64,
    pub(super) episode: EpisodeSnapshot,
}

/// Episodes, and the newest version of the weights.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Leases {
    pub(super) given: Vec<Lease>,
    pub(super) version: PolicyVersion,
    /// Whether the run is over, so that there will be no more.
    #[serde(default)]
    pub(super) is_over: bool,
}

/// The state of an episode after a turn, or the end of its lease.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) worker: String,
    pub(super) lease: String,
    pub(super) state: Reported,
}

/// What a worker reports of an episode.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reported {
    /// A turn is done, and the next one runs.
    Turn { episode: Box<EpisodeSnapshot>, n_sampled: u64 },
    /// The episode is suspended.
    Suspended { episode: Box<EpisodeSnapshot> },
    /// The episode is to begin anew from its last known state: its environment cannot be taken elsewhere in the middle.
    Unchanged,
    /// The episode has an outcome.
    Finished { trajectory: Box<Trajectory> },
    /// The worker cannot make this episode.
    Refused { reason: String },
}

/// The trainer's answer to a report.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct LeaseVerdict {
    /// Whether the lease is still the worker's; otherwise what it reported is dropped, and it drops the episode.
    pub(super) is_current: bool,
    /// Whether the episode is to be suspended.
    pub(super) stops: bool,
}

/// A sign of life.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Heartbeat {
    pub(super) worker: String,
    pub(super) leases: Vec<String>,
}

/// The trainer's answer to a sign of life.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Pulse {
    /// The leases whose episodes are to be suspended.
    pub(super) stop: Vec<String>,
    /// The leases that are no longer the worker's.
    pub(super) lost: Vec<String>,
}

/// A request to the trainer's engine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Draw {
    pub(super) worker: String,
    pub(super) request: SampleRequest,
}

/// A session that is interrupted or released.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct OfSession {
    pub(super) worker: String,
    pub(super) session: SessionId,
}

/// The answer of the trainer's engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Drawn {
    Sample(SentSample),
    Unavailable(String),
    Refused(String),
    Failed(String),
    NotFinite(String),
}

/// A sample, column by column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SentSample {
    ids: Vec<TokenId>,
    logprobs: Vec<f32>,
    versions: Vec<PolicyVersion>,
    kv_versions: Vec<PolicyVersion>,
    kept: Vec<Vec<TokenId>>,
    stop: StopReason,
    engine: String,
}

impl From<Result<Sample, PolicyError>> for Drawn {
    fn from(result: Result<Sample, PolicyError>) -> Self {
        match result {
            Ok(sample) => Self::Sample(SentSample::from(sample)),
            Err(PolicyError::Unavailable(reason)) => Self::Unavailable(reason),
            Err(PolicyError::Refused(reason)) => Self::Refused(reason),
            Err(PolicyError::NotFinite(reason)) => Self::NotFinite(reason),
            Err(error @ (PolicyError::Failed(_) | PolicyError::Diverged(_))) => {
                Self::Failed(error.to_string())
            }
        }
    }
}

impl Drawn {
    pub(super) fn into_result(self) -> Result<Sample, PolicyError> {
        Err(match self {
            Self::Sample(sample) => return sample.checked().map_err(PolicyError::Failed),
            Self::Unavailable(reason) => PolicyError::Unavailable(reason),
            Self::Refused(reason) => PolicyError::Refused(reason),
            Self::NotFinite(reason) => PolicyError::NotFinite(reason),
            Self::Failed(reason) => PolicyError::Failed(reason),
        })
    }
}

impl From<Sample> for SentSample {
    fn from(sample: Sample) -> Self {
        let Sample { tokens, kept, stop, engine } = sample;
        Self {
            ids: tokens.iter().map(|token| token.id).collect(),
            logprobs: tokens.iter().map(|token| token.logprob).collect(),
            versions: tokens.iter().map(|token| token.version).collect(),
            kv_versions: tokens.iter().map(|token| token.kv_version).collect(),
            kept,
            stop,
            engine,
        }
    }
}

impl SentSample {
    /// Reads the columns, which have to be equally long.
    fn checked(self) -> Result<Sample, String> {
        let Self { ids, logprobs, versions, kv_versions, kept, stop, engine } = self;
        let n = ids.len();
        if [logprobs.len(), versions.len(), kv_versions.len()] != [n; 3] {
            return Err("the trainer's answer has columns of different lengths".to_owned());
        }
        let columns = ids.into_iter().zip(logprobs).zip(versions.into_iter().zip(kv_versions));
        let token = |((id, logprob), (version, kv_version))| SampledToken {
            kv_version,
            ..SampledToken::new(id, logprob, version)
        };
        Ok(Sample { tokens: columns.map(token).collect(), kept, stop, engine })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_crosses_the_wire_bit_for_bit() {
        let token = |id, logprob, version: u32| SampledToken {
            kv_version: PolicyVersion(version - 1),
            ..SampledToken::new(id, logprob, PolicyVersion(version))
        };
        let sample = Sample {
            tokens: vec![token(7, -0.1, 3), token(u32::MAX, -1.234_567_9e-7, 4)],
            kept: vec![vec![7, 9], vec![]],
            stop: StopReason::Interrupted,
            engine: "candle".to_owned(),
        };
        let text = serde_json::to_string(&Drawn::from(Ok(sample.clone()))).unwrap();
        let back: Drawn = serde_json::from_str(&text).unwrap();
        assert_eq!(back.into_result().unwrap(), sample);
    }

    #[test]
    fn columns_that_do_not_fit_are_an_error() {
        let text = r#"{"sample":{"ids":[1,2],"logprobs":[-0.5],"versions":[0,0],"kv_versions":[0,0],"kept":[],"stop":"max_tokens","engine":"x"}}"#;
        let drawn: Drawn = serde_json::from_str(text).unwrap();
        assert!(matches!(drawn.into_result(), Err(PolicyError::Failed(_))));
    }
}
