use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnwise_environment::derive_seed;
use turnwise_trajectory::{PolicyVersion, SampledToken, Sampling, StopReason, TokenId};

use crate::{Divergence, TokenConstraint};

/// Identifies the conversation of one seat of one attempt at an episode. An engine may keep keys and values for it between
/// turns; it never decides what is sampled.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct SessionId(pub u64);

impl SessionId {
    /// Returns the session of the tokens with a sampling seed in an attempt.
    #[must_use]
    pub fn of(sampling_seed: u64, attempt: u32) -> Self {
        Self(derive_seed(derive_seed(sampling_seed, SESSIONS), u64::from(attempt)))
    }
}

/// The label of the ids of sessions.
const SESSIONS: u64 = 0x005E_5510;

/// A request to an engine, as plain data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleRequest {
    /// All tokens before the first token to sample, including those of an interrupted turn.
    pub prompt: Vec<TokenId>,
    /// Sampling stops after one of these tokens, which is returned.
    pub stop: Vec<TokenId>,
    /// The maximal number of tokens to sample; at least 1.
    pub max_tokens: usize,
    /// The sampling settings.
    pub sampling: Sampling,
    /// The sampling seed of the episode, or of the seat in an environment with several.
    pub seed: u64,
    /// The number of tokens that were sampled before with this seed: the first token uses the random number at `(seed,
    /// first_index)`, the second uses the next. Therefore the tokens do not depend on where a turn was cut.
    pub first_index: u64,
    /// The oldest version that may serve the request.
    pub min_version: PolicyVersion,
    /// The session, equal for all requests of one seat in one attempt, so that an engine can keep its KV cache between
    /// turns. An [`Agent`](crate::Agent) sends `SessionId(sampling_seed)`; the episode puts the session of its attempt
    /// there.
    pub session: SessionId,
}

/// An engine's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The tokens in order, a stop token included.
    pub tokens: Vec<SampledToken>,
    /// For each token, the ids that truncation or a constraint kept, the target among them
    /// ([`Sampler::support`](crate::Sampler::support)); an empty set stands for the whole vocabulary. No sets at all if
    /// every token was sampled from the whole vocabulary.
    pub kept: Vec<Vec<TokenId>>,
    /// The reason why sampling stopped.
    pub stop: StopReason,
    /// The engine that sampled the tokens, for records.
    pub engine: String,
}

impl Sample {
    /// Creates an answer without tokens, with the stop reason `MaxTokens`.
    #[must_use]
    pub fn new(engine: impl Into<String>) -> Self {
        let engine = engine.into();
        Self { tokens: Vec::new(), kept: Vec::new(), stop: StopReason::MaxTokens, engine }
    }

    /// Appends a token with the ids that it was sampled from; an empty `support` stands for the whole vocabulary.
    ///
    /// ```
    /// use turnwise_rollout::{Sample, Sampler};
    /// use turnwise_trajectory::{PolicyVersion, SampledToken, Sampling};
    ///
    /// let (mut sampler, mut sample) = (Sampler::default(), Sample::new("example"));
    /// for sampling in [Sampling::default(), Sampling { top_k: 2, ..Sampling::default() }] {
    ///     let (id, logprob) = sampler.draw(&[0.0, 9.0, 8.0], &sampling, 0.5);
    ///     sample.push(SampledToken::new(id, logprob, PolicyVersion(0)), sampler.support());
    /// }
    /// assert_eq!(sample.kept, [vec![], vec![1, 2]]);
    /// ```
    pub fn push(&mut self, token: SampledToken, support: &[TokenId]) {
        if !support.is_empty() {
            self.kept.resize(self.tokens.len(), Vec::new());
        }
        if !(self.kept.is_empty() && support.is_empty()) {
            self.kept.push(support.to_vec());
        }
        self.tokens.push(token);
    }
}

/// An inference engine, which samples tokens from a model.
///
/// # Contract
///
/// - Each token carries the log-probability of the distribution it was *sampled from* (after temperature and
///   truncation), and the version of the weights that sampled it, recorded at sampling time. The caller never adds
///   either. If truncation or a constraint removed tokens from the distribution, the answer has the kept ids.
/// - Under fixed weights the tokens are a function of `(prompt, sampling, seed, first_index)`, independent of other
///   requests and of how a turn was cut into requests. Use [`Sampler`](crate::Sampler) and
///   [`uniform_at`](crate::uniform_at).
/// - An answer has at least one token unless it is `Interrupted`, at most `max_tokens`, and none after a stop token.
/// - Weights may change between two tokens of one request; the tokens' versions then change too.
/// - Dropping the future cancels the request and leaks nothing.
///
/// An engine in this process implements the trait, and a client of a server can: requests and answers are plain data.
///
/// # Example
///
/// An engine that knows one answer, and the check that an agent makes of each:
///
/// ```
/// use turnwise_rollout::{
///     Policy, PolicyError, Sample, SampleRequest, SessionId, check_sample,
/// };
/// use turnwise_trajectory::{PolicyVersion, SampledToken, StopReason};
/// # use turnwise_environment::async_trait;
/// # use turnwise_trajectory::Sampling;
///
/// /// Ends every turn with its first token, which it samples with probability 1.
/// struct Silent;
///
/// #[async_trait]
/// impl Policy for Silent {
///     fn version(&self) -> PolicyVersion {
///         PolicyVersion(0)
///     }
///
///     async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
///         if request.min_version > self.version() {
///             return Err(PolicyError::Refused("these weights never change".to_owned()));
///         }
///         let Some(end) = request.stop.first() else {
///             return Err(PolicyError::Refused("a turn without an end".to_owned()));
///         };
///         let mut sample = Sample { stop: StopReason::EndOfTurn, ..Sample::new("silent") };
///         sample.push(SampledToken::new(*end, 0.0, self.version()), &[]);
///         Ok(sample)
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let request = SampleRequest {
///     prompt: vec![5, 6],
///     stop: vec![0],
///     max_tokens: 8,
///     sampling: Sampling::default(),
///     seed: 1,
///     first_index: 0,
///     min_version: PolicyVersion(0),
///     session: SessionId(1),
/// };
/// let sample = Silent.sample(request.clone()).await?;
/// check_sample(&sample, &request)?;
/// # Ok(())
/// # }
/// ```
///
/// `turnwise_testkit::conformance::policy` tests the whole contract.
#[async_trait]
pub trait Policy: Send + Sync {
    /// Returns the newest version that the engine serves.
    fn version(&self) -> PolicyVersion;

    /// Samples the next tokens.
    ///
    /// # Errors
    /// If the engine cannot be reached, is broken, or refuses the request.
    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError>;

    /// Samples the next tokens under a constraint, and returns the ids that each token was sampled from
    /// ([`Sample::kept`]). The constraint is not part of the request, which stays plain data:
    /// an engine that cannot call a constraint between two tokens refuses.
    ///
    /// # Errors
    /// Those of [`sample`](Self::sample), and if the constraint allows no token.
    async fn sample_constrained(
        &self,
        request: SampleRequest,
        constraint: Arc<dyn TokenConstraint>,
    ) -> Result<Sample, PolicyError> {
        let _ = (request, constraint);
        Err(PolicyError::Refused("this engine does not support constraints".to_owned()))
    }

    /// Requests that a session's open request returns its sampled tokens at the next token, with
    /// [`StopReason::Interrupted`]. Returns false if the engine does not support that; the request is then dropped, and
    /// sampled again.
    fn interrupt(&self, session: SessionId) -> bool {
        let _ = session;
        false
    }

    /// Ends a session: no further request will use it.
    fn release(&self, session: SessionId) {
        let _ = session;
    }
}

/// The reason why an engine did not answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PolicyError {
    /// The engine cannot be reached or has stopped.
    #[error("cannot reach the engine: {0}")]
    Unavailable(String),
    /// The engine refused the request: a token beyond its vocabulary, a prompt beyond its context, weights too old.
    #[error("the engine refused the request: {0}")]
    Refused(String),
    /// The engine broke while serving the request.
    #[error("cannot sample tokens: {0}")]
    Failed(String),
    /// The model's logits are NaN or infinite, so that no token has a probability. The text names the weight that
    /// causes it.
    #[error("cannot sample tokens from logits that are not finite: {0}")]
    NotFinite(String),
    /// The engine answers from a record, and the request differs from the recorded one.
    #[error("cannot answer from the record: {0}")]
    Diverged(Divergence),
}

/// Checks the parts of [`Policy`]'s contract that one answer shows.
///
/// Agents check every answer and return the error as [`AgentError::BadEngine`](crate::AgentError::BadEngine).
///
/// # Errors
/// A sentence that says what is wrong: more tokens than requested or none at all, a log-probability that is not a
/// finite number of at most 0, kept sets that do not match the tokens, weights older than the request or the previous
/// token allows, keys newer than the weights, a stop token before the end, or an end without one.
pub fn check_sample(sample: &Sample, request: &SampleRequest) -> Result<(), String> {
    let n = sample.tokens.len();
    if n > request.max_tokens {
        return Err(format!("{n} tokens instead of at most {}", request.max_tokens));
    }
    if n == 0 && sample.stop != StopReason::Interrupted {
        return Err("no tokens without an interruption".to_owned());
    }
    if sample.stop == StopReason::MaxTokens && n < request.max_tokens {
        return Err(format!(
            "{n} of {} tokens with the stop reason max_tokens",
            request.max_tokens
        ));
    }
    if !(sample.kept.is_empty() || sample.kept.len() == n) {
        return Err(format!("{} kept sets for {n} tokens", sample.kept.len()));
    }
    for (index, (token, kept)) in sample.tokens.iter().zip(&sample.kept).enumerate() {
        if !(kept.is_empty() || kept.contains(&token.id)) {
            return Err(format!("the kept set of token {index} lacks its id {}", token.id));
        }
    }
    let mut newest = request.min_version;
    for (index, token) in sample.tokens.iter().enumerate() {
        if !(token.logprob.is_finite() && token.logprob <= 0.0) {
            return Err(format!("log-probability {} at token {index}", token.logprob));
        }
        if token.version < newest {
            return Err(format!("{} after {newest} at token {index}", token.version));
        }
        if token.kv_version > token.version {
            return Err(format!("{} over keys of {}", token.version, token.kv_version));
        }
        if token.sampling != 0 || token.mask.is_some() || token.advantage.is_some() {
            return Err(format!("token {index} has a mask or credit"));
        }
        newest = token.version;
        let is_last = index + 1 == n;
        let ends = is_last && sample.stop == StopReason::EndOfTurn;
        if request.stop.contains(&token.id) != ends {
            return Err(format!("stop token and stop reason disagree at token {index}"));
        }
    }
    Ok(())
}
