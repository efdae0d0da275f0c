//! Requests to a Tinker server: what repeats them, and how results are fetched.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::error::TinkerError;
use super::retry::Retry;
use super::settings::TinkerSettings;
use crate::fault::ServerFault;
use crate::http::{Http, Incoming, Outgoing};
use crate::secret::Secret;

/// The media type of JSON.
pub(super) const JSON: &str = "application/json";
/// The media type of protobuf messages.
pub(super) const PROTOBUF: &str = "application/x-protobuf";
const EITHER: &str = "application/x-protobuf, application/json";
/// The version of the protocol, as the SDK of this version speaks it.
pub(super) const SDK_VERSION: &str = "0.25.0";
/// The pause between two questions for a result.
const BETWEEN_POLLS: Duration = Duration::from_millis(20);

/// A Tinker server.
#[derive(Debug)]
pub(super) struct Client {
    http: Http,
    timeout: Duration,
    max_wait: Duration,
    result_timeout: Duration,
    /// A random number, which no other process has.
    nonce: u64,
    n_requests: AtomicU64,
}

impl Client {
    pub(super) fn new(settings: &TinkerSettings, key: Option<Secret>) -> Result<Self, TinkerError> {
        let timeout = seconds(settings.timeout_s);
        // A long poll is silent for as long as the server likes; its limit is `timeout`.
        let http = Http::new(&settings.url, key, timeout * 2)?.with_key_header("x-api-key");
        Ok(Self {
            http,
            timeout,
            max_wait: seconds(settings.max_wait_s),
            result_timeout: seconds(settings.result_timeout_s),
            nonce: RandomState::new().build_hasher().finish(),
            n_requests: AtomicU64::new(0),
        })
    }

    pub(super) fn url(&self) -> String {
        self.http.url()
    }

    pub(super) fn max_wait(&self) -> Duration {
        self.max_wait
    }

    /// Gets JSON, and tries again where that can help.
    pub(super) async fn get(&self, path: &str) -> Result<Value, ServerFault> {
        let mut retry = Retry::new(self.max_wait);
        loop {
            match self.http.get(path).await {
                Ok(value) => return Ok(value),
                Err(fault) => retry.after(fault).await?,
            }
        }
    }

    /// Posts JSON, and returns the JSON of the answer.
    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value, ServerFault> {
        object(&self.send(path, JSON, body.to_string().as_bytes()).await?)
    }

    /// Posts a body whose result is to be fetched, and returns the id of the request.
    pub(super) async fn submit(
        &self,
        path: &str,
        content_type: &str,
        body: &[u8],
    ) -> Result<String, ServerFault> {
        request_id(&object(&self.send(path, content_type, body).await?)?)
    }

    /// Posts JSON whose result is to be fetched, and fetches it.
    pub(super) async fn compute(&self, path: &str, body: &Value) -> Result<Value, ServerFault> {
        let id = self.submit(path, JSON, body.to_string().as_bytes()).await?;
        object(&self.retrieve(&id).await?)
    }

    /// Waits for the result of a request.
    pub(super) async fn retrieve(&self, request_id: &str) -> Result<Incoming, ServerFault> {
        let body = json!({ "request_id": request_id }).to_string();
        let end = Instant::now() + self.result_timeout;
        let mut retry = Retry::new(self.max_wait);
        loop {
            let key = self.key();
            let outgoing = Outgoing {
                path: "/api/v1/retrieve_future",
                content_type: JSON,
                accept: EITHER,
                idempotency_key: &key,
                body: body.as_bytes(),
            };
            match self.http.exchange(outgoing, self.timeout).await {
                Ok(Some(incoming)) if !is_unfinished(&incoming) => return Ok(incoming),
                // The server says in one way or another that the result is not there yet.
                Ok(_) | Err(ServerFault::Refused { status: 408, .. }) => retry.succeeded(),
                Err(fault) => retry.after(fault).await?,
            }
            let now = Instant::now();
            // A server whose long poll is short must not be asked without a pause.
            sleep_until(now + BETWEEN_POLLS).await;
            if now >= end {
                let limit = self.result_timeout.as_secs_f64();
                return Err(ServerFault::Unreachable(format!("no result in {limit} s")));
            }
        }
    }

    /// Deletes what is at a path; that it fails changes nothing.
    pub(super) async fn delete(&self, path: &str) {
        if let Err(fault) = self.http.delete(path).await {
            tracing::debug!(path, %fault, "cannot delete on the server");
        }
    }

    pub(super) async fn download(
        &self,
        path: &str,
        longest: usize,
    ) -> Result<Vec<u8>, ServerFault> {
        let mut retry = Retry::new(self.max_wait);
        loop {
            match self.http.download(path, longest).await {
                Ok(bytes) => return Ok(bytes),
                Err(fault) => retry.after(fault).await?,
            }
        }
    }

    /// Sends the same bytes under the same key until the server answers.
    async fn send(
        &self,
        path: &str,
        content_type: &str,
        body: &[u8],
    ) -> Result<Incoming, ServerFault> {
        let key = self.key();
        let outgoing = Outgoing { path, content_type, accept: JSON, idempotency_key: &key, body };
        let mut retry = Retry::new(self.max_wait);
        loop {
            let fault = match self.http.exchange(outgoing, self.timeout).await {
                Ok(Some(incoming)) => return Ok(incoming),
                Ok(None) => {
                    let limit = self.timeout.as_secs_f64();
                    ServerFault::Unreachable(format!("no answer in {limit} s"))
                }
                Err(fault) => fault,
            };
            retry.after(fault).await?;
        }
    }

    fn key(&self) -> String {
        let index = self.n_requests.fetch_add(1, Ordering::Relaxed);
        format!("turnwise-{:016x}-{index}", self.nonce)
    }
}

/// Returns the JSON object of an answer.
pub(super) fn object(incoming: &Incoming) -> Result<Value, ServerFault> {
    let value: Value = serde_json::from_slice(&incoming.bytes)
        .map_err(|_| ServerFault::Wrong("an answer that is not JSON".to_owned()))?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(ServerFault::Wrong("JSON without fields".to_owned()))
    }
}

/// Returns a text of an answer.
pub(super) fn text(value: &Value, name: &str) -> Result<String, ServerFault> {
    let found = value.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    found
        .map(str::to_owned)
        .ok_or_else(|| ServerFault::Wrong(format!("an answer without `{name}`")))
}

/// Returns the id under which a result is fetched.
pub(super) fn request_id(value: &Value) -> Result<String, ServerFault> {
    text(value, "request_id")
}

/// Returns a protobuf message of an answer.
pub(super) fn message<M: prost::Message + Default>(incoming: &Incoming) -> Result<M, ServerFault> {
    if !incoming.content_type.starts_with(PROTOBUF) {
        let kind = crate::http::message(&incoming.content_type);
        return Err(ServerFault::Wrong(format!("an answer of type `{kind}` instead of protobuf")));
    }
    M::decode(&*incoming.bytes)
        .map_err(|error| ServerFault::Wrong(format!("an answer that is no message: {error}")))
}

fn is_unfinished(incoming: &Incoming) -> bool {
    !incoming.content_type.starts_with(PROTOBUF)
        && object(incoming).is_ok_and(|value| value["type"] == "try_again")
}

/// Returns a duration, or the longest possible if a setting is no duration.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(u64::from(u32::MAX)))
}
