//! SGLang on the wire, by its documentation: not tested with a server.
//!
//! An answer arrives whole; a request is cut by its `rid`, and its answer then has the tokens so far.

use std::time::Duration;

use serde_json::{Value, json};
use turnwise_rollout::SampleRequest;
use turnwise_trajectory::{PolicyVersion, TokenId};

use crate::fault::ServerFault;
use crate::http::Http;
use crate::published::{PublishedWeights, WeightFiles, adapter_name};
use crate::stream::{Finish, SentPiece, SentToken};
use crate::vllm::{token_id, version_label};

/// Returns the body of `POST /generate`; `adapter` is the name of an adapter, and `id` that of the request.
pub(crate) fn generate(
    adapter: Option<&str>,
    request: &SampleRequest,
    seed: Option<u64>,
    id: &str,
) -> Value {
    let sampling = &request.sampling;
    // SGLang writes -1 for all tokens.
    let top_k = if sampling.top_k == 0 { -1 } else { i64::from(sampling.top_k) };
    json!({
        "rid": id,
        "input_ids": request.prompt,
        "lora_path": adapter,
        "return_logprob": true,
        "stream": false,
        "sampling_params": {
            "max_new_tokens": request.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": top_k,
            "min_p": sampling.min_p,
            "stop_token_ids": request.stop,
            "ignore_eos": true,
            "no_stop_trim": true,
            "skip_special_tokens": false,
            "sampling_seed": seed.map(|seed| seed >> 33),
        },
    })
}

/// Reads an answer.
pub(crate) fn read(answer: &Value) -> Result<SentPiece, ServerFault> {
    let meta = &answer["meta_info"];
    let pairs = meta["output_token_logprobs"].as_array();
    let pairs = pairs.ok_or_else(|| ServerFault::Wrong("no log-probabilities".to_owned()))?;
    let token = |pair: &Value| {
        Some(SentToken { id: token_id(&pair[1])?, logprob: pair[0].as_f64()?, kept: None })
    };
    let tokens: Option<Vec<SentToken>> = pairs.iter().map(token).collect();
    let tokens =
        tokens.ok_or_else(|| ServerFault::Wrong("a token without its numbers".to_owned()))?;
    let ids = answer["output_ids"].as_array().map(Vec::as_slice).unwrap_or_default();
    if ids.len() != tokens.len()
        || ids.iter().zip(&tokens).any(|(id, token)| token_id(id) != Some(token.id))
    {
        return Err(ServerFault::Wrong("log-probabilities of other tokens".to_owned()));
    }
    let finish = match meta["finish_reason"]["type"].as_str() {
        Some("stop") => Finish::Stop,
        Some("length") => Finish::Length,
        Some("abort") => Finish::Aborted,
        other => {
            let other = other.unwrap_or("nothing");
            return Err(ServerFault::Broke(format!("the request ended with `{other}`")));
        }
    };
    let labels = meta["weight_version"].as_str().map(str::to_owned).into_iter().collect();
    Ok(SentPiece { tokens, finish: Some(finish), labels })
}

/// Cuts a request, whose answer then has the tokens so far.
pub(crate) async fn abort(http: &Http, id: &str, limit: Duration) -> Result<(), ServerFault> {
    http.post("/abort_request", &json!({"rid": id}), limit).await.map(drop)
}

/// Looks at a server; returns its context length.
pub(crate) async fn find(http: &Http) -> Result<(String, Option<usize>), ServerFault> {
    let info = http.get("/get_server_info").await?;
    let model = http.get("/get_model_info").await?;
    let name = model["model_path"].as_str().unwrap_or("default").to_owned();
    let context = info["context_length"].as_u64().or_else(|| info["max_total_num_tokens"].as_u64());
    Ok((name, context.map(|length| length as usize)))
}

/// Scores tokens at temperature 1: entry `t` is the log-probability of `ids[t + 1]`.
pub(crate) async fn score(
    http: &Http,
    adapter: Option<&str>,
    ids: &[TokenId],
    limit: Duration,
) -> Result<Vec<f32>, ServerFault> {
    let body = json!({
        "input_ids": ids,
        "lora_path": adapter,
        "return_logprob": true,
        "logprob_start_len": 0,
        "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
    });
    let answer = http.post("/generate", &body, limit).await?;
    let rows = answer["meta_info"]["input_token_logprobs"].as_array().map(Vec::as_slice);
    let scored: Option<Vec<f64>> =
        rows.unwrap_or_default().iter().skip(1).map(|row| row[0].as_f64()).collect();
    let scored = scored.filter(|scored| scored.len() + 1 == ids.len());
    let scored =
        scored.ok_or_else(|| ServerFault::Wrong("no log-probabilities of a prompt".to_owned()))?;
    Ok(scored.into_iter().map(|logprob| logprob as f32).collect())
}

/// Loads weights into a server.
pub(crate) async fn load(
    http: &Http,
    published: &PublishedWeights,
    limit: Duration,
) -> Result<(), ServerFault> {
    match &published.files {
        WeightFiles::Adapter(path) => {
            let body = json!({"lora_name": adapter_name(published.version), "lora_path": path});
            match http.post("/load_lora_adapter", &body, limit).await {
                Err(ServerFault::Refused { message, .. }) if message.contains("already") => Ok(()),
                other => succeeded(&other?),
            }
        }
        WeightFiles::Model(path) => {
            http.post("/pause_generation", &json!({"mode": "abort"}), limit).await?;
            let body = json!({
                "model_path": path,
                "flush_cache": true,
                "weight_version": version_label(published.version),
            });
            let replaced = http.post("/update_weights_from_disk", &body, limit).await;
            let resumed = http.post("/continue_generation", &json!({}), limit).await;
            succeeded(&replaced?).and(resumed.map(drop))
        }
    }
}

/// Forgets an adapter.
pub(crate) async fn unload(
    http: &Http,
    version: PolicyVersion,
    limit: Duration,
) -> Result<(), ServerFault> {
    let body = json!({"lora_name": adapter_name(version)});
    match http.post("/unload_lora_adapter", &body, limit).await {
        Ok(_) | Err(ServerFault::Refused { .. }) => Ok(()),
        Err(fault) => Err(fault),
    }
}

/// Refuses an answer that says that it failed.
fn succeeded(answer: &Value) -> Result<(), ServerFault> {
    if answer["success"] == json!(false) {
        let text = answer["message"].as_str().or_else(|| answer["error_message"].as_str());
        return Err(ServerFault::Broke(crate::http::message(text.unwrap_or_default())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_as_documented_is_read() {
        let answer = json!({
            "text": "ab", "output_ids": [5, 6],
            "meta_info": {
                "finish_reason": {"type": "stop", "matched": 6},
                "output_token_logprobs": [[-0.5, 5, null], [-0.25, 6, null]],
                "weight_version": "v3",
            },
        });
        let piece = read(&answer).unwrap();
        assert_eq!((piece.finish, &*piece.labels), (Some(Finish::Stop), &["v3".to_owned()][..]));
        assert_eq!(piece.tokens[1], SentToken { id: 6, logprob: -0.25, kept: None });
        let mut other = answer.clone();
        other["output_ids"] = json!([5, 7]);
        assert!(matches!(read(&other), Err(ServerFault::Wrong(_))));
    }
}
