//! vLLM on the wire: its token endpoint, or completions with token ids, and its routes for new weights.

use std::time::Duration;

use serde_json::{Value, json};
use turnwise_rollout::SampleRequest;
use turnwise_trajectory::{PolicyVersion, TokenId};

use crate::fault::ServerFault;
use crate::http::Http;
use crate::published::{PublishedWeights, WeightFiles, adapter_name};
use crate::stream::{Finish, SentPiece, SentToken};

/// The route that samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// `/inference/v1/generate`, which `--enable-scale-out` opens.
    Tokens,
    /// `/v1/completions` with ids instead of text.
    Completions,
}

/// A server that can be sampled from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FoundServer {
    pub(crate) model: String,
    pub(crate) context: Option<usize>,
    pub(crate) endpoint: Endpoint,
}

/// Looks at a server: its model, its endpoint, and whether its log-probabilities are those of the distribution that it samples
/// from.
pub(crate) async fn find(
    http: &Http,
    wanted: Option<&str>,
    limit: Duration,
) -> Result<Result<FoundServer, String>, ServerFault> {
    let models = http.get("/v1/models").await?;
    let cards = models["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    let name = |card: &Value| card["id"].as_str().map(str::to_owned);
    let card = match wanted {
        Some(wanted) => cards.iter().find(|card| card["id"].as_str() == Some(wanted)),
        None => cards.iter().find(|card| card["parent"].is_null()),
    };
    let Some((card, model)) = card.and_then(|card| Some((card, name(card)?))) else {
        let names: Vec<_> = cards.iter().filter_map(name).collect();
        let wanted = wanted.unwrap_or("any model");
        return Ok(Err(format!("it does not serve {wanted}, but {}", names.join(", "))));
    };
    let context = card["max_model_len"].as_u64().map(|length| length as usize);
    let endpoint = match top_logprob(http, Endpoint::Tokens, &model, 1.0, limit).await {
        Ok(_) => Endpoint::Tokens,
        Err(ServerFault::Refused { status: 403..=405, .. }) => Endpoint::Completions,
        Err(fault) => return Err(fault),
    };
    let hot = top_logprob(http, endpoint, &model, 2.0, limit).await?;
    let cold = top_logprob(http, endpoint, &model, 0.5, limit).await?;
    if (hot - cold).abs() < 1e-6 {
        return Ok(Err("its log-probabilities do not depend on the temperature, so that they are not those of the \
                       distribution that it samples from; start it with  --logprobs-mode processed_logprobs"
            .to_owned()));
    }
    Ok(Ok(FoundServer { model, context, endpoint }))
}

/// Returns the log-probability of the most likely token at a temperature.
async fn top_logprob(
    http: &Http,
    endpoint: Endpoint,
    model: &str,
    temperature: f64,
    limit: Duration,
) -> Result<f64, ServerFault> {
    let mut params = parameters(temperature, 1);
    params["logprobs"] = json!(1);
    let (path, body) = addressed(endpoint, model, &[1, 2, 3], params, false);
    let answer = http.post(path, &body, limit).await?;
    let choice = &answer["choices"][0];
    let logprobs = match endpoint {
        Endpoint::Tokens => {
            let top = choice["logprobs"]["content"][0]["top_logprobs"].as_array();
            top.into_iter().flatten().filter_map(|one| one["logprob"].as_f64()).reduce(f64::max)
        }
        Endpoint::Completions => {
            let top = choice["logprobs"]["top_logprobs"][0].as_object();
            top.into_iter().flatten().filter_map(|(_, one)| one.as_f64()).reduce(f64::max)
        }
    };
    logprobs.ok_or_else(|| ServerFault::Wrong("no log-probabilities".to_owned()))
}

/// Returns the parameters of a request. All are set, because a server's own defaults come from its model's files.
fn parameters(temperature: f64, max_tokens: usize) -> Value {
    json!({
        "n": 1,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "ignore_eos": true,
        "skip_special_tokens": false,
        "logprobs": 0,
    })
}

/// Returns the path and the body of a request with the given parameters.
fn addressed(
    endpoint: Endpoint,
    model: &str,
    prompt: &[TokenId],
    mut params: Value,
    streams: bool,
) -> (&'static str, Value) {
    match endpoint {
        Endpoint::Tokens => {
            params["detokenize"] = json!(false);
            let body = json!({
                "model": model, "token_ids": prompt, "sampling_params": params, "stream": streams,
            });
            ("/inference/v1/generate", body)
        }
        Endpoint::Completions => {
            let body = &mut params;
            body["model"] = json!(model);
            body["prompt"] = json!(prompt);
            body["stream"] = json!(streams);
            body["return_token_ids"] = json!(true);
            body["return_tokens_as_token_ids"] = json!(true);
            ("/v1/completions", params)
        }
    }
}

/// Returns the path and the body of a request to sample.
pub(crate) fn generate(
    endpoint: Endpoint,
    model: &str,
    request: &SampleRequest,
    seed: Option<u64>,
) -> (&'static str, Value) {
    let sampling = &request.sampling;
    let mut params = parameters(f64::from(sampling.temperature), request.max_tokens);
    params["top_p"] = json!(sampling.top_p);
    params["top_k"] = json!(sampling.top_k);
    params["min_p"] = json!(sampling.min_p);
    params["stop_token_ids"] = json!(request.stop);
    if let Some(seed) = seed {
        // 63 bits, because the server reads a signed number.
        params["seed"] = json!(seed >> 1);
    }
    addressed(endpoint, model, &request.prompt, params, true)
}

/// Reads an event of a stream; `None` for the last one, which has no data.
pub(crate) fn read(endpoint: Endpoint, event: &str) -> Result<Option<SentPiece>, ServerFault> {
    if event == "[DONE]" {
        return Ok(None);
    }
    let wrong = |what: &str| ServerFault::Wrong(format!("{what} in an event"));
    let event: Value = serde_json::from_str(event).map_err(|_| wrong("no JSON"))?;
    if event.get("error").is_some_and(|error| !error.is_null()) {
        return Err(ServerFault::Broke(crate::http::message(&event.to_string())));
    }
    let Some(choice) = event["choices"].get(0) else { return Ok(Some(SentPiece::default())) };
    let ids = choice["token_ids"].as_array().map(Vec::as_slice).unwrap_or_default();
    let logprobs: Vec<(Option<u64>, Option<f64>)> = match endpoint {
        Endpoint::Tokens => {
            let content = choice["logprobs"]["content"].as_array().map(Vec::as_slice);
            let pair = |one: &Value| (one["token_id"].as_u64(), one["logprob"].as_f64());
            content.unwrap_or_default().iter().map(pair).collect()
        }
        Endpoint::Completions => {
            let content = choice["logprobs"]["token_logprobs"].as_array().map(Vec::as_slice);
            content.unwrap_or_default().iter().map(|one| (None, one.as_f64())).collect()
        }
    };
    if logprobs.len() != ids.len() {
        let (n, wanted) = (logprobs.len(), ids.len());
        return Err(wrong(&format!("{n} log-probabilities of {wanted} tokens")));
    }
    let masks = choice["sampling_mask"].as_array();
    if masks.is_some_and(|masks| masks.len() != ids.len()) {
        return Err(wrong("sets of kept ids that do not fit the tokens"));
    }
    let mut tokens = Vec::with_capacity(ids.len());
    for (place, (id, (named, logprob))) in ids.iter().zip(logprobs).enumerate() {
        let id = token_id(id).ok_or_else(|| wrong("no token id"))?;
        if named.is_some_and(|named| named != u64::from(id)) {
            return Err(wrong("the log-probability of another token"));
        }
        let logprob = logprob.ok_or_else(|| wrong("no log-probability"))?;
        let kept = match masks {
            Some(masks) => Some(ids_of(&masks[place]).ok_or_else(|| wrong("no kept ids"))?),
            None => None,
        };
        tokens.push(SentToken { id, logprob, kept });
    }
    let finish = match choice["finish_reason"].as_str() {
        None => None,
        Some("stop") => Some(Finish::Stop),
        Some("length") => Some(Finish::Length),
        Some("abort") => Some(Finish::Aborted),
        Some(other) => {
            return Err(ServerFault::Broke(format!("the request ended with `{other}`")));
        }
    };
    let spans = choice["weight_versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let label = |span: &Value| span["version"].as_str().map(str::to_owned);
    Ok(Some(SentPiece { tokens, finish, labels: spans.iter().filter_map(label).collect() }))
}

pub(crate) fn token_id(value: &Value) -> Option<TokenId> {
    value.as_u64().and_then(|id| TokenId::try_from(id).ok())
}

fn ids_of(value: &Value) -> Option<Vec<TokenId>> {
    value.as_array()?.iter().map(token_id).collect()
}

/// Scores tokens at temperature 1: entry `t` is the log-probability of `ids[t + 1]`.
pub(crate) async fn score(
    http: &Http,
    endpoint: Endpoint,
    model: &str,
    ids: &[TokenId],
    limit: Duration,
) -> Result<Vec<f32>, ServerFault> {
    let mut params = parameters(1.0, 1);
    params["prompt_logprobs"] = json!(0);
    let (path, body) = addressed(endpoint, model, ids, params, false);
    let answer = http.post(path, &body, limit).await?;
    let rows = match endpoint {
        Endpoint::Tokens => &answer["prompt_logprobs"],
        Endpoint::Completions => &answer["choices"][0]["prompt_logprobs"],
    };
    let rows = rows.as_array().map(Vec::as_slice).unwrap_or_default();
    // The first token has no log-probability.
    let of = |(row, id): (&Value, &TokenId)| row[id.to_string()]["logprob"].as_f64();
    let scored: Option<Vec<f64>> = rows.iter().zip(ids).skip(1).map(of).collect();
    let scored = scored.filter(|scored| scored.len() + 1 == ids.len());
    let scored =
        scored.ok_or_else(|| ServerFault::Wrong("no log-probabilities of a prompt".to_owned()))?;
    Ok(scored.into_iter().map(|logprob| logprob as f32).collect())
}

/// Loads weights into a server. A whole model replaces the old one in place, so nothing may be sampled meanwhile.
pub(crate) async fn load(
    http: &Http,
    published: &PublishedWeights,
    limit: Duration,
) -> Result<(), ServerFault> {
    match &published.files {
        WeightFiles::Adapter(path) => {
            let name = adapter_name(published.version);
            let body = json!({"lora_name": name, "lora_path": path});
            match http.post("/v1/load_lora_adapter", &body, limit).await {
                Ok(_) => Ok(()),
                // It has this version from an earlier attempt, or from before it was in quarantine. A name is never reused.
                Err(ServerFault::Refused { message, .. }) if message.contains("already") => Ok(()),
                Err(ServerFault::Refused { status: 404, message }) if message == "Not Found" => {
                    Err(ServerFault::Refused {
                        status: 404,
                        message: "it does not take adapters: start it with  --enable-lora --max-lora-rank RANK  and the \
                                  environment variable  VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
                            .to_owned(),
                    })
                }
                Err(fault) => Err(fault),
            }
        }
        WeightFiles::Model(path) => {
            let path = path.to_string_lossy();
            control(http, "/pause", &Value::Null, limit).await?;
            let replaced = replace(http, &path, published.version, limit).await;
            // A server that stays paused would never answer again.
            let resumed = control(http, "/resume", &Value::Null, limit).await;
            replaced.and(resumed)
        }
    }
}

async fn replace(
    http: &Http,
    path: &str,
    version: PolicyVersion,
    limit: Duration,
) -> Result<(), ServerFault> {
    let reload = json!({"method": "reload_weights", "kwargs": {"weights_path": path}});
    control(http, "/collective_rpc", &reload, limit).await?;
    control(http, "/reset_prefix_cache", &Value::Null, limit).await?;
    let label = json!({"new_version": version_label(version)});
    match http.post("/update_weight_version", &label, limit).await {
        // Older servers have no labels.
        Ok(_) | Err(ServerFault::Refused { status: 404, .. }) => Ok(()),
        Err(fault) => Err(fault),
    }
}

async fn control(
    http: &Http,
    path: &str,
    body: &Value,
    limit: Duration,
) -> Result<(), ServerFault> {
    match http.post(path, body, limit).await {
        Ok(_) => Ok(()),
        Err(ServerFault::Refused { status: 404, .. }) => Err(ServerFault::Refused {
            status: 404,
            message: format!(
                "it has no route {path}: start it with the environment variable  VLLM_SERVER_DEV_MODE=1"
            ),
        }),
        Err(fault) => Err(fault),
    }
}

/// Returns the label under which a server knows whole weights.
pub(crate) fn version_label(version: PolicyVersion) -> String {
    version.to_string()
}

/// Forgets an adapter. A server that does not know it has forgotten it already.
pub(crate) async fn unload(
    http: &Http,
    version: PolicyVersion,
    limit: Duration,
) -> Result<(), ServerFault> {
    let body = json!({"lora_name": adapter_name(version)});
    match http.post("/v1/unload_lora_adapter", &body, limit).await {
        Ok(_) | Err(ServerFault::Refused { .. }) => Ok(()),
        Err(fault) => Err(fault),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_event_of_the_token_endpoint_is_read() {
        let event = r#"{"request_id":"g","choices":[{"index":0,"finish_reason":"length","stop_reason":null,"token_ids":[207,129],
            "routed_experts":null,"sampling_mask":null,"weight_versions":[{"version":"default","start":0,"end":2}],
            "logprobs":{"content":[{"token_id":207,"logprob":-5.963031768798828,"rank":181,"top_logprobs":[]},
            {"token_id":129,"logprob":-5.1,"rank":2,"top_logprobs":[]}]}}]}"#;
        let piece = read(Endpoint::Tokens, event).unwrap().unwrap();
        assert_eq!(piece.finish, Some(Finish::Length));
        assert_eq!(piece.labels, ["default"]);
        assert_eq!(
            piece.tokens[0],
            SentToken { id: 207, logprob: -5.963_031_768_798_828, kept: None }
        );
        assert_eq!(piece.tokens.len(), 2);
        assert_eq!(read(Endpoint::Tokens, "[DONE]").unwrap(), None);
    }

    #[test]
    fn what_does_not_fit_together_is_wrong() {
        let of = |choice: &str| read(Endpoint::Tokens, &format!(r#"{{"choices":[{choice}]}}"#));
        let other = r#"{"token_ids":[1],"logprobs":{"content":[{"token_id":2,"logprob":-1.0}]}}"#;
        let fewer = r#"{"token_ids":[1,2],"logprobs":{"content":[{"token_id":1,"logprob":-1.0}]}}"#;
        let none = r#"{"token_ids":[1],"logprobs":{"content":[{"token_id":1,"logprob":null}]}}"#;
        let large = r#"{"token_ids":[4294967296],"logprobs":{"content":[{"token_id":4294967296,"logprob":-1.0}]}}"#;
        let negative =
            r#"{"token_ids":[-1],"logprobs":{"content":[{"token_id":-1,"logprob":-1.0}]}}"#;
        for choice in [other, fewer, none, large, negative] {
            assert!(matches!(of(choice), Err(ServerFault::Wrong(_))), "{choice}");
        }
        assert!(matches!(read(Endpoint::Tokens, "<html>"), Err(ServerFault::Wrong(_))));
        let error = r#"{"error":{"message":"out of memory","code":500}}"#;
        let broke = ServerFault::Broke("out of memory".to_owned());
        assert_eq!(read(Endpoint::Tokens, error), Err(broke));
    }
}
