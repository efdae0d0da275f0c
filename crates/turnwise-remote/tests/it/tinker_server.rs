//! A server that speaks Tinker's protocol, which can be told to fail.

#[path = "../../src/tinker/messages.rs"]
#[allow(dead_code)] // what the client alone needs
mod messages;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use axum::Json;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use futures_util::stream;
use messages::{
    ArrayRecord, BatchedTensor, Datum, FLOAT32, ForwardBackwardOutput, ForwardBackwardRequest,
    SampleResponse, SampledSequence, floats, ids,
};
use prost::Message;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use turnwise_rollout::uniform_at;

use crate::tinker_adapter::archive;
use crate::tinker_model::Bigrams;

/// What gradients are divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Rule {
    /// As Tinker itself.
    #[default]
    Sum,
    /// As SkyRL: by the tokens of a sequence, and the sequences of a step.
    Means,
    /// As nobody.
    Roots,
    /// A constant.
    Half,
    /// The gradient of the other direction.
    Negative,
}

/// What a server does wrong.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conduct {
    /// Results that are asked for so often are not there yet.
    pub(crate) polls: usize,
    /// The answer to the next request to this route is lost after it was served.
    pub(crate) lose: Option<&'static str>,
    /// The next requests to this route find the server busy.
    pub(crate) busy: Option<(&'static str, usize)>,
    /// The result of the next requests to this route.
    pub(crate) result: Option<(&'static str, &'static str, Vec<u8>)>,
    /// Every request to this route is refused with this status.
    pub(crate) refuse: Option<(&'static str, u16)>,
}

/// A model of the server.
#[derive(Clone, Debug)]
pub(crate) struct Trained {
    pub(crate) weights: Bigrams,
    n_window: usize,
    /// The requests by number: body and id of the result.
    seen: HashMap<i64, (Vec<u8>, String)>,
}

/// The state of a server.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) rule: Rule,
    pub(crate) conduct: Conduct,
    pub(crate) models: BTreeMap<String, Trained>,
    saved: HashMap<String, Bigrams>,
    results: HashMap<String, (&'static str, Vec<u8>)>,
    n_ids: usize,
    /// The routes of the requests that were served, in order.
    pub(crate) served: Vec<String>,
    pub(crate) keys: Vec<String>,
    /// The archive of every adapter.
    pub(crate) archive: Vec<u8>,
}

type Shared = Arc<Mutex<Kept>>;

/// A server that runs.
pub(crate) struct Tinker {
    pub(crate) url: String,
    pub(crate) kept: Shared,
    task: JoinHandle<()>,
}

impl Tinker {
    pub(crate) async fn start(rule: Rule) -> Self {
        let kept =
            Arc::new(Mutex::new(Kept { rule, archive: archive(&["q_proj"]), ..Kept::default() }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = router(kept.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, kept, task }
    }

    pub(crate) fn conduct(&self, conduct: Conduct) {
        self.kept.lock().unwrap().conduct = conduct;
    }

    /// Returns how often a route was served.
    pub(crate) fn count(&self, route: &str) -> usize {
        self.kept.lock().unwrap().served.iter().filter(|one| *one == route).count()
    }

    /// Returns the weights of the newest model.
    pub(crate) fn weights(&self) -> Vec<f64> {
        let kept = self.kept.lock().unwrap();
        kept.models.values().next_back().unwrap().weights.logits.clone()
    }
}

impl Drop for Tinker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn router(kept: Shared) -> Router {
    let packed = "/api/v1/training_runs/{model}/checkpoints/{name}/archive";
    let checkpoint = "/api/v1/training_runs/{model}/checkpoints/{kind}/{name}";
    Router::new()
        .route("/api/v1/get_server_capabilities", get(capabilities))
        .route("/api/v1/retrieve_future", post(retrieve))
        .route("/api/v1/{route}", post(serve))
        .route(packed, get(redirect))
        .route("/files/{name}", get(file))
        .route(checkpoint, delete(forget))
        .with_state(kept)
}

async fn capabilities() -> Json<Value> {
    Json(json!({ "supported_models": [{ "model_name": "bigrams" }] }))
}

async fn redirect(Path((model, name)): Path<(String, String)>) -> Response {
    (StatusCode::FOUND, [("location", format!("/files/{model}-{name}"))]).into_response()
}

async fn file(State(kept): State<Shared>) -> Vec<u8> {
    kept.lock().unwrap().archive.clone()
}

async fn forget(State(kept): State<Shared>, Path(parts): Path<(String, String, String)>) {
    kept.lock().unwrap().saved.remove(&format!("tinker://{}/{}", parts.0, parts.2));
}

async fn retrieve(State(kept): State<Shared>, Json(body): Json<Value>) -> Response {
    let mut kept = kept.lock().unwrap();
    if kept.conduct.polls > 0 {
        kept.conduct.polls -= 1;
        // The two ways in which servers say it.
        if kept.conduct.polls % 2 == 0 {
            return StatusCode::REQUEST_TIMEOUT.into_response();
        }
        return Json(json!({ "type": "try_again" })).into_response();
    }
    match kept.results.get(body["request_id"].as_str().unwrap()) {
        Some((kind, bytes)) => ([("content-type", *kind)], bytes.clone()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn serve(
    State(kept): State<Shared>,
    Path(route): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut kept = kept.lock().unwrap();
    let key = headers.get("x-idempotency-key").unwrap().to_str().unwrap().to_owned();
    if let Some((busy, n)) = &mut kept.conduct.busy
        && *busy == route
        && *n > 0
    {
        *n -= 1;
        return (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "0")]).into_response();
    }
    if let Some((refused, status)) = kept.conduct.refuse
        && refused == route
    {
        return StatusCode::from_u16(status).unwrap().into_response();
    }
    let answer = match kept.answer(&route, &body) {
        Ok(answer) => answer,
        Err(status) => return status.into_response(),
    };
    kept.keys.push(key);
    if kept.conduct.lose == Some(route.as_str()) {
        kept.conduct.lose = None;
        let broken = stream::iter([Ok("{"), Err(std::io::Error::other("broken"))]);
        return Response::new(Body::from_stream(broken));
    }
    Json(answer).into_response()
}

impl Kept {
    fn answer(&mut self, route: &str, body: &[u8]) -> Result<Value, StatusCode> {
        let json: Value = serde_json::from_slice(body).unwrap_or_default();
        let request = ForwardBackwardRequest::decode(body).unwrap_or_default();
        let (model, seq_id) = match route {
            "forward_backward" => (request.model_id.clone(), Some(i64::from(request.seq_id))),
            _ => {
                (json["model_id"].as_str().unwrap_or_default().to_owned(), json["seq_id"].as_i64())
            }
        };
        // Servers know training requests again, but not requests to save.
        let known = seq_id.filter(|_| !route.starts_with("save"));
        let seen = self.models.get(&model).and_then(|model| model.seen.get(&known?));
        if let Some((earlier, id)) = seen {
            let same = earlier == body;
            return if same { Ok(json!({ "request_id": id })) } else { Err(StatusCode::CONFLICT) };
        }
        if route == "load_weights" && !self.models[&model].seen.is_empty() {
            return Err(StatusCode::BAD_REQUEST);
        }
        self.served.push(route.to_owned());
        self.n_ids += 1;
        let id = self.n_ids.to_string();
        let (kind, bytes) = self.compute(route, &model, &json, &request)?;
        let result = match self.conduct.result.take_if(|(of, ..)| *of == route) {
            Some((_, kind, bytes)) => (kind, bytes),
            None => (kind, bytes),
        };
        self.results.insert(id.clone(), result);
        if let (Some(model), Some(seq_id)) = (self.models.get_mut(&model), seq_id) {
            model.seen.insert(seq_id, (body.to_vec(), id.clone()));
        }
        let newest = format!("model-{:04}", self.n_ids);
        Ok(json!({ "request_id": id, "session_id": "session-1", "model_id": newest }))
    }

    fn compute(
        &mut self,
        route: &str,
        model: &str,
        json: &Value,
        request: &ForwardBackwardRequest,
    ) -> Result<(&'static str, Vec<u8>), StatusCode> {
        let path = format!("tinker://{model}/{}", json["path"].as_str().unwrap_or_default());
        let answer = match route {
            "forward_backward" => return Ok(("application/x-protobuf", self.pass(request))),
            "asample" => return Ok(("application/x-protobuf", self.sample(json)?)),
            "create_model" => {
                let weights = Bigrams::new();
                let trained = Trained { weights, n_window: 0, seen: HashMap::new() };
                self.models.insert(format!("model-{:04}", self.n_ids), trained);
                json!({})
            }
            "unload_model" => {
                self.models.remove(model);
                json!({})
            }
            "optim_step" => {
                let rule = self.rule;
                let model = self.models.get_mut(model).ok_or(StatusCode::NOT_FOUND)?;
                let n = std::mem::take(&mut model.n_window).max(1) as f64;
                let divisor = if rule == Rule::Means { n } else { 1.0 };
                let norm = model.weights.step(divisor, &json["adam_params"]);
                json!({ "metrics": { "skyrl.ai/grad_norm": norm, "skyrl.ai/learning_rate": 0.0 } })
            }
            "save_weights" | "save_weights_for_sampler" => {
                if self.saved.contains_key(&path) {
                    return Err(StatusCode::CONFLICT);
                }
                self.saved.insert(path.clone(), self.models[model].weights.clone());
                json!({ "path": path })
            }
            "load_weights" => {
                let saved = self.saved.get(json["path"].as_str().unwrap_or_default());
                let weights = saved.ok_or(StatusCode::NOT_FOUND)?.clone();
                self.models.get_mut(model).ok_or(StatusCode::NOT_FOUND)?.weights = weights;
                json!({})
            }
            _ => json!({}),
        };
        Ok(("application/json", answer.to_string().into_bytes()))
    }

    fn pass(&mut self, request: &ForwardBackwardRequest) -> Vec<u8> {
        let rule = self.rule;
        let model = self.models.get_mut(&request.model_id).unwrap();
        let (mut data, mut offsets) = (Vec::new(), vec![0_i64]);
        for datum in &request.data {
            let (inputs, targets) = tokens(datum);
            let floats =
                |name: &str| floats(datum.loss_fn_inputs[name].dense.as_deref().unwrap()).unwrap();
            let logprob = |t: usize| model.weights.logprob(inputs[t], targets[t]);
            let logprobs: Vec<f64> = (0..inputs.len()).map(logprob).collect();
            if !request.forward_only {
                assert_eq!(request.loss_fn, "importance_sampling");
                let divisor = divisor(rule, inputs.len());
                let (given, advantages) = (floats("logprobs"), floats("advantages"));
                for t in 0..inputs.len() {
                    let ratio = (logprobs[t] - f64::from(given[t])).exp();
                    let weight = -ratio * f64::from(advantages[t]) / divisor;
                    model.weights.add(inputs[t], targets[t], weight);
                }
                model.n_window += 1;
            }
            data.extend(logprobs.iter().flat_map(|logprob| (*logprob as f32).to_le_bytes()));
            offsets.push(i64::try_from(data.len()).unwrap());
        }
        let offsets = offsets.into_iter().flat_map(i64::to_le_bytes).collect();
        let logprobs = BatchedTensor { data, offsets, dtype: FLOAT32 };
        let fields = BTreeMap::from([("logprobs".to_owned(), logprobs)]);
        let num_datums = i64::try_from(request.data.len()).unwrap();
        let record = ArrayRecord { fields, num_datums };
        let output =
            ForwardBackwardOutput { loss_fn_outputs: vec![record], metrics: BTreeMap::new() };
        output.encode_to_vec()
    }

    fn sample(&self, json: &Value) -> Result<Vec<u8>, StatusCode> {
        let path = json["model_path"].as_str().unwrap_or_default();
        let weights = self.saved.get(path).ok_or(StatusCode::NOT_FOUND)?;
        let params = &json["sampling_params"];
        let prompt = json["prompt"]["chunks"][0]["tokens"].as_array().unwrap();
        let mut last = prompt.last().unwrap().as_u64().unwrap() as u32;
        let (mut tokens, mut logprobs, mut stop_reason) = (Vec::new(), Vec::new(), 1);
        for index in 0..params["max_tokens"].as_u64().unwrap() {
            let mut left = uniform_at(params["seed"].as_u64().unwrap(), index);
            let choice = weights.after(last).into_iter().position(|probability| {
                left -= probability;
                left < 0.0
            });
            let id = choice.unwrap_or(0) as u32;
            tokens.extend(id.to_le_bytes());
            logprobs.extend((weights.logprob(last, id) as f32).to_le_bytes());
            last = id;
            if params["stop"].as_array().is_some_and(|stop| stop.contains(&json!(id))) {
                stop_reason = 0;
                break;
            }
        }
        let sequence = SampledSequence { stop_reason, tokens, logprobs: Some(logprobs) };
        Ok(SampleResponse { sequences: vec![sequence] }.encode_to_vec())
    }
}

fn divisor(rule: Rule, n_tokens: usize) -> f64 {
    match rule {
        Rule::Sum => 1.0,
        Rule::Means => n_tokens as f64,
        Rule::Roots => (n_tokens as f64).sqrt(),
        Rule::Half => 2.0,
        Rule::Negative => -1.0,
    }
}

/// Returns inputs and targets, which have to be one shifted by one.
fn tokens(datum: &Datum) -> (Vec<u32>, Vec<u32>) {
    let text = datum.model_input[0].encoded_text.as_ref().unwrap();
    let inputs = ids(&text.tokens).unwrap();
    let dense = datum.loss_fn_inputs["target_tokens"].dense.as_deref().unwrap();
    let (chunks, _) = dense.as_chunks::<8>();
    let targets: Vec<u32> =
        chunks.iter().map(|bytes| u32::try_from(i64::from_le_bytes(*bytes)).unwrap()).collect();
    assert_eq!(inputs[1..], targets[..targets.len() - 1]);
    (inputs, targets)
}
