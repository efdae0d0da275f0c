//! A policy that samples on a Tinker server.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use turnwise_environment::derive_seed;
use turnwise_rollout::{Policy, PolicyError, Sample, SampleRequest};
use turnwise_trajectory::PolicyVersion;

use super::client::{Client, JSON, message};
use super::messages::{SampleResponse, SampledSequence, floats, ids};
use super::published::Published;
use crate::fault::ServerFault;
use crate::stream::{Finish, Gathered, SentToken};

/// A policy that samples with the weights that a [`TinkerLearner`](crate::TinkerLearner) published last; a handle.
///
/// A request is sampled as a whole: it cannot be interrupted, and waits while the learner has trained weights that it has not
/// published. The same request gets the same tokens as far as the server's arithmetic is the same.
///
/// Not supported: temperatures other than 1 and 0, truncated sampling, and constraints.
#[derive(Clone, Debug)]
pub struct TinkerPolicy {
    client: Arc<Client>,
    published: Arc<Published>,
    permits: Arc<Semaphore>,
}

/// The name in records.
const ENGINE: &str = "tinker";
/// Servers keep seeds in 32 bits with a sign.
const SEEDS: u64 = 0x7fff_ffff;

impl TinkerPolicy {
    pub(super) fn new(client: Arc<Client>, published: Arc<Published>, max_requests: usize) -> Self {
        let permits = Arc::new(Semaphore::new(max_requests.clamp(1, Semaphore::MAX_PERMITS)));
        Self { client, published, permits }
    }

    async fn ask(&self, body: &Value) -> Result<SampledSequence, ServerFault> {
        let bytes = body.to_string();
        let request = self.client.submit("/api/v1/asample", JSON, bytes.as_bytes()).await?;
        let response: SampleResponse = message(&self.client.retrieve(&request).await?)?;
        let n = response.sequences.len();
        let mut sequences = response.sequences.into_iter();
        match (sequences.next(), n) {
            (Some(sequence), 1) => Ok(sequence),
            _ => Err(ServerFault::Wrong(format!("{n} samples instead of 1"))),
        }
    }
}

#[async_trait]
impl Policy for TinkerPolicy {
    fn version(&self) -> PolicyVersion {
        self.published.newest().version
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        check(&request)?;
        let closed = |_| PolicyError::Unavailable("the engine was closed".to_owned());
        let _permit = self.permits.acquire().await.map_err(closed)?;
        let limit = self.client.max_wait();
        let entered = tokio::time::timeout(limit, self.published.enter()).await;
        let _entered = entered.map_err(|_| {
            let limit = limit.as_secs_f64();
            PolicyError::Unavailable(format!("trained weights were not published for {limit} s"))
        })?;
        let newest = self.published.newest();
        if newest.version < request.min_version {
            let (has, wanted) = (newest.version, request.min_version);
            let reason = format!("the newest weights are {has}, older than {wanted}");
            return Err(PolicyError::Refused(reason));
        }
        let sequence =
            self.ask(&body(&request, &newest.path)).await.map_err(|fault| error(&fault))?;
        let mut gathered = Gathered::new(&request, ENGINE);
        let (tokens, finish) = tokens(&sequence).map_err(|fault| error(&fault))?;
        gathered.append(&tokens, newest.version).map_err(|fault| error(&fault))?;
        gathered.finish(finish).map_err(|fault| error(&fault))?;
        Ok(gathered.into_sample(false))
    }
}

/// Refuses what the protocol cannot express.
fn check(request: &SampleRequest) -> Result<(), PolicyError> {
    let refused = |reason: &str| Err(PolicyError::Refused(reason.to_owned()));
    let temperature = request.sampling.temperature;
    if temperature != 1.0 && temperature != 0.0 {
        return refused("a Tinker server trains at temperature 1 alone; set `temperature = 1`");
    }
    if temperature != 0.0 && !request.sampling.covers_vocabulary() {
        return refused(
            "a Tinker server does not say which ids truncation kept; set `top_p = 1`, `top_k = 0` and `min_p = 0`",
        );
    }
    if request.prompt.is_empty() {
        return refused("a Tinker server samples after a prompt alone, and the prompt is empty");
    }
    Ok(())
}

fn body(request: &SampleRequest, path: &str) -> Value {
    // The rest of a turn must not repeat its beginning.
    let seed = derive_seed(request.seed, request.first_index) & SEEDS;
    let mut params = json!({
        "max_tokens": request.max_tokens,
        "seed": seed,
        "temperature": request.sampling.temperature,
        "top_k": -1,
        "top_p": 1.0,
    });
    if !request.stop.is_empty() {
        params["stop"] = json!(request.stop);
    }
    json!({
        "num_samples": 1,
        "prompt": { "chunks": [{ "type": "encoded_text", "tokens": request.prompt }] },
        "sampling_params": params,
        "model_path": path,
        "prompt_logprobs": false,
        "topk_prompt_logprobs": 0,
        "type": "sample",
    })
}

/// Returns the tokens of an answer, and why it ends.
fn tokens(sequence: &SampledSequence) -> Result<(Vec<SentToken>, Finish), ServerFault> {
    let wrong = |what: &str| ServerFault::Wrong(what.to_owned());
    let ids = ids(&sequence.tokens).ok_or_else(|| wrong("tokens that are no ids"))?;
    let logprobs = sequence.logprobs.as_deref().and_then(floats);
    let logprobs = logprobs.ok_or_else(|| wrong("tokens without log-probabilities"))?;
    if ids.len() != logprobs.len() {
        return Err(ServerFault::Wrong(format!(
            "{} log-probabilities of {} tokens",
            logprobs.len(),
            ids.len()
        )));
    }
    let finish = match sequence.stop_reason {
        0 => Finish::Stop,
        1 => Finish::Length,
        other => return Err(ServerFault::Wrong(format!("stop reason {other}"))),
    };
    let sent = ids.into_iter().zip(logprobs);
    let sent = sent.map(|(id, logprob)| SentToken { id, logprob: logprob.into(), kept: None });
    Ok((sent.collect(), finish))
}

fn error(fault: &ServerFault) -> PolicyError {
    match fault {
        ServerFault::Refused { .. } => PolicyError::Refused(fault.to_string()),
        ServerFault::Unreachable(_) | ServerFault::Busy { .. } => {
            PolicyError::Unavailable(fault.to_string())
        }
        ServerFault::Broke(_) | ServerFault::Wrong(_) => PolicyError::Failed(fault.to_string()),
    }
}
