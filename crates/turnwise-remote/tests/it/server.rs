//! A server of the small model, which can be told to fail.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use turnwise_rollout::{Sampler, uniform_at};
use turnwise_trajectory::{Sampling, TokenId};

use crate::model::{Model, N_IDS};

/// What a server does with the next requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Conduct {
    #[default]
    Serve,
    /// 503 for so many requests.
    Busy(usize),
    /// The connection breaks after so many tokens.
    BreakAfter(usize),
    /// Positive log-probabilities.
    Positive,
    /// The log-probability of another token.
    Misaligned,
    /// Another page.
    Html,
    /// An event without end.
    Endless,
    /// Sends so many tokens, and then nothing.
    StallAfter(usize),
    /// A redirection to another server.
    Redirect,
    /// There is no route for adapters.
    NoAdapters,
}

/// The state of a server.
#[derive(Debug, Default)]
pub(crate) struct Served {
    pub(crate) base: Mutex<u64>,
    pub(crate) adapters: Mutex<HashMap<String, Model>>,
    pub(crate) conduct: Mutex<Conduct>,
    /// Whether `/inference/v1/generate` is closed.
    pub(crate) completions_only: bool,
    /// Whether log-probabilities are those of temperature 1 whatever the temperature.
    pub(crate) raw_logprobs: bool,
    /// Whether whole weights are never taken up, as with tied heads.
    pub(crate) keeps_weights: bool,
    pub(crate) label: Mutex<String>,
    pub(crate) key: Option<&'static str>,
    /// Requests to sample, by the first id of their prompts.
    pub(crate) asked: Mutex<Vec<TokenId>>,
    /// Notified when a stream stalls.
    pub(crate) stalled: Notify,
    pub(crate) unloaded: Mutex<Vec<String>>,
}

/// A server that runs.
pub(crate) struct Running {
    pub(crate) url: String,
    pub(crate) served: Arc<Served>,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) async fn start(served: Served) -> Self {
        "default".clone_into(&mut served.label.lock().unwrap());
        let served = Arc::new(served);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = router(served.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, served, task }
    }

    pub(crate) fn conduct(&self, conduct: Conduct) {
        *self.served.conduct.lock().unwrap() = conduct;
    }

    /// Forgets what was loaded, like a process that was started anew.
    pub(crate) fn restart(&self) {
        self.served.adapters.lock().unwrap().clear();
    }

    pub(crate) fn n_asked(&self) -> usize {
        self.served.asked.lock().unwrap().len()
    }

    pub(crate) fn stop(&self) {
        self.task.abort();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Writes weights as the small model reads them.
pub(crate) fn write(directory: &Path, name: &str, weights: u64) -> std::path::PathBuf {
    let path = directory.join(name);
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("weights"), weights.to_string()).unwrap();
    path
}

fn router(served: Arc<Served>) -> Router {
    Router::new()
        .route("/v1/models", get(models))
        .route("/inference/v1/generate", post(generate))
        .route("/v1/completions", post(completions))
        .route("/v1/load_lora_adapter", post(load))
        .route("/v1/unload_lora_adapter", post(unload))
        .route("/pause", post(|| async { Json(json!({"status": "paused"})) }))
        .route("/resume", post(|| async { Json(json!({"status": "resumed"})) }))
        .route("/collective_rpc", post(reload))
        .route("/reset_prefix_cache", post(|| async { StatusCode::OK }))
        .route("/update_weight_version", post(label))
        .with_state(served)
}

type At = State<Arc<Served>>;

async fn models(State(served): At, headers: HeaderMap) -> Response {
    if let Some(key) = served.key
        && headers.get("authorization").map(axum::http::HeaderValue::as_bytes)
            != Some(format!("Bearer {key}").as_bytes())
    {
        return (StatusCode::UNAUTHORIZED, Json(json!({"error": "Unauthorized"}))).into_response();
    }
    let adapters = served.adapters.lock().unwrap();
    let mut cards = vec![json!({"id": "base", "max_model_len": 64, "parent": null})];
    cards.extend(adapters.keys().map(|name| json!({"id": name, "parent": "base"})));
    Json(json!({"data": cards})).into_response()
}

async fn load(State(served): At, Json(body): Json<Value>) -> Response {
    if *served.conduct.lock().unwrap() == Conduct::NoAdapters {
        return (StatusCode::NOT_FOUND, Json(json!({"detail": "Not Found"}))).into_response();
    }
    let name = body["lora_name"].as_str().unwrap().to_owned();
    let mut adapters = served.adapters.lock().unwrap();
    if adapters.contains_key(&name) {
        let message = format!("The lora adapter '{name}' has already been loaded.");
        return (StatusCode::BAD_REQUEST, Json(json!({"error": {"message": message}})))
            .into_response();
    }
    adapters.insert(name, read(&body["lora_path"]));
    "Success".into_response()
}

async fn unload(State(served): At, Json(body): Json<Value>) {
    let name = body["lora_name"].as_str().unwrap();
    served.adapters.lock().unwrap().remove(name);
    served.unloaded.lock().unwrap().push(name.to_owned());
}

async fn reload(State(served): At, Json(body): Json<Value>) {
    assert_eq!(body["method"], "reload_weights");
    if !served.keeps_weights {
        *served.base.lock().unwrap() = read(&body["kwargs"]["weights_path"]).0;
    }
}

async fn label(State(served): At, Json(body): Json<Value>) {
    body["new_version"].as_str().unwrap().clone_into(&mut served.label.lock().unwrap());
}

fn read(path: &Value) -> Model {
    let path = Path::new(path.as_str().unwrap()).join("weights");
    Model(fs::read_to_string(path).unwrap().parse().unwrap())
}

async fn generate(State(served): At, Json(body): Json<Value>) -> Response {
    if served.completions_only {
        let message = "Scale-out endpoints are disabled.";
        return (StatusCode::FORBIDDEN, Json(json!({"error": {"message": message}})))
            .into_response();
    }
    let params = body["sampling_params"].clone();
    answer(&served, &body, &params, &body["token_ids"], false)
}

async fn completions(State(served): At, Json(body): Json<Value>) -> Response {
    answer(&served, &body, &body, &body["prompt"], true)
}

fn answer(
    served: &Arc<Served>,
    body: &Value,
    params: &Value,
    prompt: &Value,
    is_completion: bool,
) -> Response {
    let name = body["model"].as_str().unwrap();
    let model = if name == "base" {
        Some(Model(*served.base.lock().unwrap()))
    } else {
        served.adapters.lock().unwrap().get(name).copied()
    };
    let Some(model) = model else {
        let message = format!("The model `{name}` does not exist.");
        return (StatusCode::NOT_FOUND, Json(json!({"error": {"message": message}})))
            .into_response();
    };
    let prompt: Vec<TokenId> = serde_json::from_value(prompt.clone()).unwrap();
    if prompt.iter().any(|id| u64::from(*id) >= N_IDS) {
        let message = "A token id is out of vocabulary.";
        return (StatusCode::BAD_REQUEST, Json(json!({"error": {"message": message}})))
            .into_response();
    }
    let drawn = draw(served, model, &prompt, params);
    if body["stream"] == json!(false) {
        let mut chunk = chunk(served, &drawn, "length", is_completion);
        if !params["prompt_logprobs"].is_null() {
            let row = |t: usize| {
                let logprob = model.logprob(&prompt[..t], prompt[t], 1.0);
                json!({prompt[t].to_string(): {"logprob": logprob, "rank": 1}})
            };
            let rows: Vec<Value> =
                (0..prompt.len()).map(|t| if t == 0 { Value::Null } else { row(t) }).collect();
            let place = if is_completion { &mut chunk["choices"][0] } else { &mut chunk };
            place["prompt_logprobs"] = json!(rows);
        }
        return Json(chunk).into_response();
    }
    served.asked.lock().unwrap().push(prompt[0]);
    stream_of(served, drawn, params, is_completion)
}

/// A token as it was sampled, with its log-probability and that of the most likely one.
struct Drawn {
    id: TokenId,
    logprob: f64,
    top: f64,
}

fn draw(served: &Served, model: Model, prompt: &[TokenId], params: &Value) -> Vec<Drawn> {
    let temperature = params["temperature"].as_f64().unwrap();
    let stop: Vec<TokenId> =
        serde_json::from_value(params["stop_token_ids"].clone()).unwrap_or_default();
    let seed = params["seed"].as_u64().unwrap_or(0);
    let sampling = Sampling { temperature: temperature as f32, ..Sampling::default() };
    let (mut text, mut drawn) = (prompt.to_vec(), Vec::new());
    for index in 0..params["max_tokens"].as_u64().unwrap() {
        let logits = model.logits(&text);
        let (id, _) = Sampler::default().draw(&logits, &sampling, uniform_at(seed, index));
        let recorded = if served.raw_logprobs { 1.0 } else { temperature };
        let logprob = |id: TokenId| model.logprob(&text, id, recorded);
        let top = (0..logits.len() as TokenId).map(logprob).fold(f64::MIN, f64::max);
        drawn.push(Drawn { id, logprob: logprob(id), top });
        text.push(id);
        if stop.contains(&id) {
            break;
        }
    }
    drawn
}

fn chunk(served: &Served, drawn: &[Drawn], finish: &str, is_completion: bool) -> Value {
    let finish = if finish.is_empty() { Value::Null } else { json!(finish) };
    let ids: Vec<TokenId> = drawn.iter().map(|one| one.id).collect();
    let label = served.label.lock().unwrap().clone();
    let spans = json!([{"version": label, "start": 0, "end": 1}]);
    if is_completion {
        let logprobs: Vec<f64> = drawn.iter().map(|one| one.logprob).collect();
        let tops: Vec<Value> = drawn.iter().map(|one| json!({"token_id:0": one.top})).collect();
        return json!({"choices": [{"index": 0, "finish_reason": finish, "token_ids": ids,
            "logprobs": {"token_logprobs": logprobs, "top_logprobs": tops}}]});
    }
    let content = |one: &Drawn| {
        json!({"token_id": one.id, "logprob": one.logprob,
            "top_logprobs": [{"token_id": 0, "logprob": one.top}]})
    };
    let content: Vec<Value> = drawn.iter().map(content).collect();
    json!({"request_id": "g", "choices": [{"index": 0, "finish_reason": finish, "token_ids": ids,
        "sampling_mask": null, "weight_versions": spans, "logprobs": {"content": content}}]})
}

fn stream_of(
    served: &Arc<Served>,
    drawn: Vec<Drawn>,
    params: &Value,
    is_completion: bool,
) -> Response {
    let conduct = served.conduct.lock().unwrap().clone();
    if let Some(refusal) = refusal(served, &conduct) {
        return refusal;
    }
    let is_full = drawn.len() as u64 == params["max_tokens"].as_u64().unwrap();
    let stop: Vec<TokenId> =
        serde_json::from_value(params["stop_token_ids"].clone()).unwrap_or_default();
    let n = drawn.len();
    let mut events = Vec::new();
    for (index, mut one) in drawn.into_iter().enumerate() {
        let is_last = index + 1 == n;
        let stopped = stop.contains(&one.id);
        let finish = match (is_last, stopped) {
            (true, true) => "stop",
            (true, false) if is_full => "length",
            _ => "",
        };
        if conduct == Conduct::Positive {
            one.logprob = 0.5;
        }
        let mut event = chunk(served, &[one], finish, is_completion);
        if conduct == Conduct::Misaligned && !is_completion {
            event["choices"][0]["token_ids"] = json!([99]);
        }
        events.push(format!("data: {event}\n\n"));
    }
    events.push("data: [DONE]\n\n".to_owned());
    let cut = match conduct {
        Conduct::BreakAfter(n) | Conduct::StallAfter(n) => n,
        _ => usize::MAX,
    };
    let served = served.clone();
    let body = stream::unfold((events.into_iter(), 0), move |(mut events, n)| {
        let (served, conduct) = (served.clone(), conduct.clone());
        async move {
            if n == cut {
                served.stalled.notify_one();
                match conduct {
                    Conduct::StallAfter(_) => std::future::pending().await,
                    _ => return Some((Err(std::io::Error::other("broken")), (events, n + 1))),
                }
            }
            if conduct == Conduct::Endless {
                return Some((Ok("data: ".repeat(10_000)), (events, n + 1)));
            }
            Some((Ok(events.next()?), (events, n + 1)))
        }
    });
    Response::new(Body::from_stream(body))
}

/// Returns the answer of a server that does not even begin.
fn refusal(served: &Served, conduct: &Conduct) -> Option<Response> {
    match conduct {
        Conduct::Busy(n) => {
            *served.conduct.lock().unwrap() =
                if *n > 1 { Conduct::Busy(n - 1) } else { Conduct::Serve };
            let body = Json(json!({"detail": "too many requests"}));
            Some((StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "0")], body).into_response())
        }
        Conduct::Redirect => {
            let to = "http://127.0.0.1:9/steal";
            Some((StatusCode::TEMPORARY_REDIRECT, [("location", to)]).into_response())
        }
        Conduct::Html => Some("<html>Sign in</html>\n\n".into_response()),
        _ => None,
    }
}
