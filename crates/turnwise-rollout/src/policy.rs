use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnwise_trajectory::{PolicyVersion, SampledToken, Sampling, StopReason, TokenId};

use crate::{ConstrainedSample, Divergence, TokenConstraint};

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

    /// Draws the next tokens from what a constraint leaves. A request itself stays data that can travel: an engine that
    /// cannot ask a constraint between two tokens refuses.
    ///
    /// # Errors
    /// As [`sample`](Self::sample), and when the constraint allows nothing.
    async fn sample_constrained(
        &self,
        request: SampleRequest,
        constraint: Arc<dyn TokenConstraint>,
    ) -> Result<ConstrainedSample, PolicyError> {
        let _ = (request, constraint);
        Err(PolicyError::Refused("this engine draws without constraints".to_owned()))
    }

    /// Asks that what a session's open request has drawn be handed over at the next token, with
    /// [`StopReason::Interrupted`]. False where the engine cannot do that; the request is then given up, and drawn again.
    fn interrupt(&self, session: u64) -> bool {
        let _ = session;
        false
    }

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
    /// The model's logits are NaN or infinite, so that no token has a probability. Says which weight they come from.
    #[error("draw tokens from logits that are not finite: {0}")]
    NotFinite(String),
    /// It answers from a record, and was asked for something else.
    #[error("answer from a record: {0}")]
    Diverged(Divergence),
}

/// Checks what an engine promised where its answer comes in: [`Policy`]'s contract, as far as one answer shows it.
///
/// Agents call it on every answer and pass the error on as [`AgentError::BadEngine`](crate::AgentError::BadEngine).
///
/// # Errors
/// A sentence with what is wrong: more tokens than were asked for or none at all, a log-probability that is not a finite
/// number of at most 0, weights older than the request or the token before allows, keys newer than the weights, a stop token
/// before the end, or an end without one.
pub fn check_sample(sample: &Sample, request: &SampleRequest) -> Result<(), String> {
    let n = sample.tokens.len();
    if n > request.max_tokens {
        return Err(format!("{n} tokens where {} were asked for", request.max_tokens));
    }
    if n == 0 && sample.stop != StopReason::Interrupted {
        return Err("no tokens, and no interruption".to_owned());
    }
    if sample.stop == StopReason::MaxTokens && n < request.max_tokens {
        return Err(format!("{n} of {} tokens, said to be all", request.max_tokens));
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
            return Err(format!("token {index} is not as it was drawn"));
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
