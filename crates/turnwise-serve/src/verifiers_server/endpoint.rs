//! The model of an episode: an endpoint that the client names, which samples from token ids.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use hyper::http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use turnwise_environment::{EnvironmentError, derive_seed};
use turnwise_rollout::{Policy, PolicyError, Sample, SampleRequest};
use turnwise_trajectory::{PolicyVersion, SampledToken, StopReason, TokenId};

use crate::environment_client::{Ask, Patience, Peer, ServerAddress};

/// How tokens are sampled, as the client asks for it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct AskedSampling {
    #[serde(default)]
    pub(super) temperature: Option<f64>,
    #[serde(default)]
    top_p: Option<f64>,
    #[serde(default)]
    top_k: Option<i64>,
    #[serde(default)]
    min_p: Option<f64>,
    #[serde(default)]
    pub(super) max_tokens: Option<usize>,
    #[serde(default)]
    cache_salt: Option<String>,
}

/// An endpoint that takes token ids: vLLM's `/inference/v1/generate`, or else `/v1/completions`.
#[derive(Debug)]
pub(super) struct TokenEndpoint {
    peer: Peer,
    model: String,
    sampling: AskedSampling,
    /// Whether it has only `/v1/completions`.
    has_completions_only: AtomicBool,
}

const GENERATE: &str = "/inference/v1/generate";
const COMPLETIONS: &str = "/v1/completions";

impl TokenEndpoint {
    /// Creates the client of an endpoint whose URL ends with `/v1`, as OpenAI's clients take it.
    pub(super) fn new(
        base_url: &str,
        key: Option<&str>,
        model: String,
        sampling: AskedSampling,
        patience: Patience,
    ) -> Result<Self, EnvironmentError> {
        let url = base_url.trim_end_matches('/');
        let address = ServerAddress::read(url.strip_suffix("/v1").unwrap_or(url))?;
        let peer = Peer::with_token(address, key, patience)?;
        Ok(Self { peer, model, sampling, has_completions_only: AtomicBool::new(false) })
    }

    /// Returns the fields of a request that both routes have.
    fn asked(&self, request: &SampleRequest) -> Map<String, Value> {
        let AskedSampling { temperature, top_p, top_k, min_p, .. } = &self.sampling;
        // Servers add a token's place to a seed, and take 63 bits of it.
        let seed = derive_seed(request.seed, request.first_index) >> 2;
        let mut fields = json!({
            "max_tokens": request.max_tokens,
            "temperature": temperature.unwrap_or(1.0),
            "seed": seed,
            "stop_token_ids": request.stop,
            // The turn ends where the template says, and nowhere else.
            "ignore_eos": true,
        });
        let optional = [("top_p", json!(top_p)), ("top_k", json!(top_k)), ("min_p", json!(min_p))];
        for (name, value) in optional {
            if !value.is_null() {
                fields[name] = value;
            }
        }
        match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        }
    }

    async fn generate(&self, request: &SampleRequest) -> Result<Option<Value>, EnvironmentError> {
        let mut sampling = self.asked(request);
        sampling.insert("logprobs".to_owned(), json!(1));
        sampling.insert("detokenize".to_owned(), json!(false));
        let mut body = json!({
            "model": self.model, "token_ids": request.prompt, "sampling_params": sampling, "stream": false,
        });
        if let Some(salt) = &self.sampling.cache_salt {
            body["cache_salt"] = json!(salt);
        }
        let answer = self.peer.answer(Ask::post(GENERATE, body)).await?;
        // 403 is vLLM's answer where the route is not enabled.
        if matches!(
            answer.status,
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED
        ) {
            return Ok(None);
        }
        answer.expected(GENERATE)?.json(GENERATE).map(Some)
    }

    async fn complete(&self, request: &SampleRequest) -> Result<Value, EnvironmentError> {
        let mut body = self.asked(request);
        body.insert("model".to_owned(), json!(self.model));
        body.insert("prompt".to_owned(), json!(request.prompt));
        body.insert("logprobs".to_owned(), json!(0));
        body.insert("return_token_ids".to_owned(), json!(true));
        self.peer.json(Ask::post(COMPLETIONS, Value::Object(body))).await
    }
}

#[async_trait]
impl Policy for TokenEndpoint {
    /// The endpoint's weights have no numbers here: the trainer that owns them counts.
    fn version(&self) -> PolicyVersion {
        PolicyVersion(0)
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        let failed = |error: EnvironmentError| PolicyError::Failed(described(&error));
        if !self.has_completions_only.load(Ordering::Relaxed) {
            if let Some(answer) = self.generate(&request).await.map_err(failed)? {
                let logprobs = &answer["choices"][0]["logprobs"]["content"];
                let logprobs = logprobs
                    .as_array()
                    .map(|each| each.iter().map(|one| &one["logprob"]).collect());
                return read(&answer["choices"][0], logprobs, &request);
            }
            self.has_completions_only.store(true, Ordering::Relaxed);
        }
        let answer = self.complete(&request).await.map_err(failed)?;
        let logprobs = answer["choices"][0]["logprobs"]["token_logprobs"].as_array();
        read(&answer["choices"][0], logprobs.map(|each| each.iter().collect()), &request)
    }
}

/// Reads a choice: its ids, their log-probabilities, and why it ended.
fn read(
    choice: &Value,
    logprobs: Option<Vec<&Value>>,
    request: &SampleRequest,
) -> Result<Sample, PolicyError> {
    let wrong = |why: &str| PolicyError::Failed(format!("the endpoint's answer has {why}"));
    let ids = choice["token_ids"].as_array().ok_or_else(|| wrong("no token_ids"))?;
    let logprobs = logprobs.ok_or_else(|| wrong("no log-probabilities"))?;
    if ids.len() != logprobs.len() {
        return Err(wrong("another number of log-probabilities than of tokens"));
    }
    let mut sample = Sample::new("endpoint");
    for (id, logprob) in ids.iter().zip(logprobs) {
        let id = id.as_u64().and_then(|id| TokenId::try_from(id).ok());
        let id = id.ok_or_else(|| wrong("a token that is no id"))?;
        let logprob =
            logprob.as_f64().ok_or_else(|| wrong("a log-probability that is no number"))?;
        // Rounding may put certainty above 1.
        let logprob = if logprob < 1e-4 { logprob.min(0.0) } else { logprob };
        sample.push(SampledToken::new(id, logprob as f32, PolicyVersion(0)), &[]);
    }
    let last = sample.tokens.last().map(|token| token.id);
    sample.stop = if last.is_some_and(|last| request.stop.contains(&last)) {
        StopReason::EndOfTurn
    } else {
        StopReason::MaxTokens
    };
    Ok(sample)
}

/// Returns an error with its causes.
fn described(error: &EnvironmentError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use turnwise_rollout::SessionId;
    use turnwise_trajectory::Sampling;

    use super::*;

    fn request() -> SampleRequest {
        SampleRequest {
            prompt: vec![1, 2],
            stop: vec![9],
            max_tokens: 3,
            sampling: Sampling::default(),
            seed: 7,
            first_index: 0,
            min_version: PolicyVersion(0),
            session: SessionId(1),
        }
    }

    fn sampled(ids: &Value, logprobs: &Value) -> Result<Sample, PolicyError> {
        let logprobs = logprobs.as_array().map(|each| each.iter().collect());
        read(&json!({"token_ids": ids, "finish_reason": "stop"}), logprobs, &request())
    }

    #[test]
    fn a_turn_ends_at_its_stop_token_or_its_limit() {
        let sample = sampled(&json!([5, 9]), &json!([-0.5, 0.000_01])).unwrap();
        assert_eq!((sample.stop, sample.tokens[1].logprob), (StopReason::EndOfTurn, 0.0));
        let sample = sampled(&json!([5, 6, 7]), &json!([-0.5, -1, -2.0])).unwrap();
        assert_eq!(sample.stop, StopReason::MaxTokens);
    }

    #[test]
    fn an_answer_that_is_none_is_the_endpoints_failure() {
        for (ids, logprobs) in [
            (json!(null), json!([])),
            (json!([5]), json!(null)),
            (json!([5]), json!([])),
            (json!([-5]), json!([-0.1])),
            (json!([4_294_967_296_u64]), json!([-0.1])),
            (json!(["5"]), json!([-0.1])),
            (json!([5]), json!([null])),
        ] {
            assert!(sampled(&ids, &logprobs).is_err(), "{ids} {logprobs}");
        }
    }
}
