use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnwise_trajectory::{PolicyVersion, SampledToken, Sampling, StopReason, TokenId};

/// What an engine is asked for: plain data, so that it can travel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleRequest {
    /// Everything before the first token to draw, tokens of an interrupted turn included.
    pub prompt: Vec<TokenId>,
    /// Drawing ends after one of these, which is returned.
    pub stop: Vec<TokenId>,
    /// How many tokens may be drawn; at least 1.
    pub max_tokens: usize,
    /// How they are drawn.
    pub sampling: Sampling,
    /// The episode's sampling seed.
    pub seed: u64,
    /// How many tokens this episode has drawn before: the first token is drawn with the random number at `(seed,
    /// first_index)`, the second with the next. Where a turn was cut can then not matter.
    pub first_index: u64,
    /// An engine with older weights than these must not serve the request.
    pub min_version: PolicyVersion,
    /// The same for all requests of one episode, so that an engine can keep its keys and values between turns.
    pub session: u64,
}

/// What an engine drew.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The tokens in order, a stop token included.
    pub tokens: Vec<SampledToken>,
    /// Why there are no more.
    pub stop: StopReason,
    /// Which engine drew them, for records.
    pub engine: String,
}

/// The inference side: something that draws tokens.
///
/// # Contract
///
/// - Each token carries the log-probability of the distribution it was *drawn from* (after temperature and truncation), and
///   the version of the weights that drew it, stamped where the draw happens. The caller never adds either.
/// - Under fixed weights the tokens are a function of `(prompt, sampling, seed, first_index)`: not of what else is being
///   served, nor of how a turn was cut into requests. Use [`Sampler`](crate::Sampler) and
///   [`uniform_at`](crate::uniform_at).
/// - At least one token comes back unless the answer is `Interrupted`, at most `max_tokens`, and after a stop token none.
/// - Weights may change between two tokens of one request; the tokens then say so.
/// - Dropping the future gives the request up and leaks nothing.
///
/// The trait is implemented by an engine in this process and can be by a client of a server: requests and answers are
/// plain data.
#[async_trait]
pub trait Policy: Send + Sync {
    /// The newest weights the engine serves.
    fn version(&self) -> PolicyVersion;

    /// Draws the next tokens.
    ///
    /// # Errors
    /// When the engine cannot be reached, is broken, or refuses the request.
    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError>;

    /// Says that a session will ask for nothing more.
    fn release(&self, session: u64) {
        let _ = session;
    }
}

/// Why an engine did not answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PolicyError {
    /// It cannot be reached or has stopped.
    #[error("reach the engine: {0}")]
    Unavailable(String),
    /// It refuses the request: a token beyond its vocabulary, a prompt beyond its context, weights too old.
    #[error("have the request served: {0}")]
    Refused(String),
    /// It broke while serving the request.
    #[error("draw tokens: {0}")]
    Failed(String),
}
