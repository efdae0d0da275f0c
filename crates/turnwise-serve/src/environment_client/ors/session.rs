//! A session: an episode at the server.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use hyper::http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::timeout;
use turnwise_environment::{EnvironmentError, ToolSpec};

use super::super::address::segment;
use super::super::answers;
use super::super::fault::{malformed, shown};
use super::super::http::{Again, Ask, HttpAnswer, MAX_BYTES, broken};
use super::super::patience::BackOff;
use super::super::peer::Peer;
use super::super::sse::{SseEvent, SseReader};
use super::super::tasks::RemoteTask;
use super::super::tool_list;

/// A session, which a task of its own keeps open while the model thinks. It is deleted when dropped.
#[derive(Debug)]
pub(super) struct OrsSession {
    peer: Arc<Peer>,
    /// The path of the environment.
    environment: String,
    id: String,
    /// The keeper ends with it.
    _held: oneshot::Sender<()>,
}

/// Servers delete sessions after 15 minutes without a word.
const PING_EVERY: Duration = Duration::from_mins(1);

/// What a call led to.
#[derive(Debug)]
pub(super) enum CallOutcome {
    /// The JSON of the answer.
    Answered(Value),
    /// The arguments do not fit.
    Mistake(String),
}

/// What a stream of events led to.
enum Streamed {
    End(String),
    /// It broke off.
    Cut(EnvironmentError),
}

/// The tools of an environment, and the one that ends an episode with the model's text.
#[derive(Clone, Debug)]
pub(super) struct OrsTools {
    pub(super) tools: Vec<ToolSpec>,
    /// The tool, and the argument that is the text, if it takes one.
    pub(super) terminal: Option<(String, Option<String>)>,
}

impl OrsSession {
    /// Opens a session and starts the episode of a task in it.
    pub(super) async fn start(
        peer: &Arc<Peer>,
        name: &str,
        task: &RemoteTask,
    ) -> Result<Self, EnvironmentError> {
        let RemoteTask::OfSplit { split, index } = task else {
            return Err(EnvironmentError::new("a task of ORS is in a split"));
        };
        let id = opened(peer).await?;
        let (held, dropped) = oneshot::channel();
        tokio::spawn(keep(peer.clone(), id.clone(), dropped));
        let environment = format!("/{}", segment(name));
        let session = Self { peer: peer.clone(), environment, id, _held: held };
        let task = json!({"split": split, "index": index, "env_name": name});
        peer.json(Ask::post("/create", task).of(&session.id).once()).await?;
        Ok(session)
    }

    /// Returns what the agent reads first.
    pub(super) async fn prompt(&self) -> Result<String, EnvironmentError> {
        let route = format!("{}/prompt", self.environment);
        let prompt = self.peer.json(Ask::get(&route).of(&self.id)).await?;
        let blocks = prompt.as_array().ok_or_else(|| malformed(&route, "it is no list"))?;
        Ok(answers::blocks(blocks))
    }

    /// Returns the tools of the episode.
    pub(super) async fn tools(&self) -> Result<OrsTools, EnvironmentError> {
        let route = format!("{}/task_tools", self.environment);
        OrsTools::read(&self.peer.json(Ask::get(&route).of(&self.id)).await?)
    }

    /// Calls a tool.
    pub(super) async fn call(
        &self,
        name: &str,
        input: &Value,
    ) -> Result<CallOutcome, EnvironmentError> {
        let route = format!("{}/call", self.environment);
        let mut running: Option<String> = None;
        let mut back_off = BackOff::new(Duration::from_secs(15));
        loop {
            let mut body = json!({"name": name, "input": input});
            let mut ask = Ask::post(&route, Value::Null).of(&self.id).once();
            if let Some(id) = &running {
                // The server knows the call, and answers it again.
                body["task_id"] = json!(id);
                ask.again = Again::Freely;
            }
            ask.body = Some(body);
            let response = self.peer.response(&ask).await?;
            match response.status() {
                StatusCode::OK => {}
                StatusCode::UNPROCESSABLE_ENTITY => {
                    return Ok(CallOutcome::Mistake(detail(&whole(response).await?)));
                }
                _ => return Err(whole(response).await?.refused(&route)),
            }
            let streamed = timeout(self.peer.patience.answer, streamed(response, &mut running));
            match streamed.await.map_err(|_| self.peer.late(&route))?? {
                Streamed::End(answer) => {
                    let answer = serde_json::from_str(&answer);
                    return answer
                        .map(CallOutcome::Answered)
                        .map_err(|error| malformed(&route, error));
                }
                Streamed::Cut(error) => match back_off.pause(None).filter(|_| running.is_some()) {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => return Err(error),
                },
            }
        }
    }
}

impl OrsTools {
    /// Reads the answer to a question for tools.
    pub(super) fn read(answer: &Value) -> Result<Self, EnvironmentError> {
        let tools = tool_list::tools(&answer["tools"])?;
        let terminal = match &answer["terminal_tool"] {
            Value::Null => None,
            Value::String(name) => Some((name.clone(), None)),
            described => {
                let name = described["name"].as_str();
                let name = name.ok_or_else(|| malformed("the question for tools", "no name"))?;
                Some((name.to_owned(), described["arg"].as_str().map(str::to_owned)))
            }
        };
        Ok(Self { tools, terminal })
    }
}

/// Opens a session and returns its id.
async fn opened(peer: &Peer) -> Result<String, EnvironmentError> {
    const ROUTE: &str = "/create_session";
    let response = peer.response(&Ask::post(ROUTE, json!({}))).await?;
    if !response.status().is_success() {
        return Err(whole(response).await?.refused(ROUTE));
    }
    let mut id = None;
    let streamed = timeout(peer.patience.answer, streamed(response, &mut id)).await;
    let streamed = streamed.map_err(|_| peer.late(ROUTE))??;
    match (id, streamed) {
        (Some(id), _) if is_id(&id) => Ok(id),
        (Some(_), _) => Err(malformed(ROUTE, "the session's id is no id")),
        (None, Streamed::Cut(error)) => Err(error),
        (None, Streamed::End(_)) => Err(malformed(ROUTE, "it has no id")),
    }
}

/// Returns whether an id can be sent back in a header.
fn is_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= 256 && id.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Reads events up to the last; `id` is what they say of it.
async fn streamed(
    response: Response<Incoming>,
    id: &mut Option<String>,
) -> Result<Streamed, EnvironmentError> {
    const WHAT: &str = "a call";
    let mut body = response.into_body();
    let (mut reader, mut data, mut n_bytes) = (SseReader::default(), String::new(), 0);
    while let Some(frame) = body.frame().await {
        let bytes = match frame {
            Ok(frame) => frame.into_data().unwrap_or_default(),
            Err(error) => return Ok(Streamed::Cut(broken(WHAT, error.into()))),
        };
        n_bytes += bytes.len();
        if n_bytes > MAX_BYTES {
            return Err(malformed(WHAT, format!("it is longer than {} MiB", MAX_BYTES >> 20)));
        }
        for SseEvent { name, data: part } in reader.take(&bytes) {
            match name.as_str() {
                "task_id" => *id = Some(part.trim().to_owned()).filter(|id| is_id(id)),
                "chunk" => data.push_str(&part),
                "end" => return Ok(Streamed::End(data + &part)),
                "error" => {
                    let what = format!("the tool failed at the server: {}", shown(&part));
                    return Err(EnvironmentError::new(what));
                }
                _ => {}
            }
        }
    }
    let what = "the server's answer to a call ended before its end";
    Ok(Streamed::Cut(EnvironmentError::new(what)))
}

async fn whole(response: Response<Incoming>) -> Result<HttpAnswer, EnvironmentError> {
    let status = response.status();
    let body = http_body_util::Limited::new(response.into_body(), MAX_BYTES).collect();
    let body = body.await.map_err(|error| broken("a request", error))?;
    Ok(HttpAnswer { status, body: body.to_bytes() })
}

/// Returns what a refusal says of the fields that are wrong.
fn detail(answer: &HttpAnswer) -> String {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    match &body["detail"] {
        Value::String(text) => shown(text),
        Value::Null => shown(&String::from_utf8_lossy(&answer.body)),
        other => shown(&other.to_string()),
    }
}

/// Keeps a session open until its episode is dropped, and then deletes it.
async fn keep(peer: Arc<Peer>, id: String, mut dropped: oneshot::Receiver<()>) {
    loop {
        tokio::select! {
            biased;
            _ = &mut dropped => break,
            () = tokio::time::sleep(PING_EVERY) => {
                if let Err(error) = peer.answer(Ask::post("/ping", json!({})).of(&id)).await {
                    tracing::debug!(%error, "a session could not be kept open");
                }
            }
        }
    }
    for route in ["/delete", "/delete_session"] {
        // A server deletes what it hears nothing of, too.
        let ask = Ask::post(route, json!({"sid": id})).of(&id).once();
        let _ = peer.answer(ask).await;
    }
}
