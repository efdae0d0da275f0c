//! The routes of the server.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderName};
use axum::middleware;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use turnwise_environment::{Suite, ToolSpec, derive_seed};

use super::super::guard::let_in;
use super::super::hosted::{CallFailure, Called, HostedEpisode, first_tools};
use super::super::refused::{Refused, read};
use super::super::sessions::{HostedSessions, Slot};
use super::super::settings::{MAX_BODY_BYTES, ServerSettings};
use super::super::tasks::{self, SplitName, TaskSpec};
use crate::key::SessionKey;

/// What all routes share.
struct Hosted {
    suite: Suite,
    settings: ServerSettings,
    sessions: HostedSessions<Played>,
}

/// An episode, and the answer to its newest call: a client whose connection broke asks for it again.
struct Played {
    episode: HostedEpisode,
    answered: Option<(String, String)>,
}

type HostedState = State<Arc<Hosted>>;

/// Makes the server of a suite. Routes of the environment are there with and without its name.
pub(in super::super) fn router(suite: Suite, settings: ServerSettings) -> Router {
    let timeout = Duration::from_secs(settings.session_timeout_s);
    let sessions = HostedSessions::new(settings.max_sessions, timeout);
    let named = format!("/{}", suite.name());
    let hosted = Arc::new(Hosted { suite, settings, sessions });
    let of_environment = Router::new()
        .route("/prompt", get(prompt))
        .route("/tools", get(tools))
        .route("/task_tools", get(tools))
        .route("/call", post(call));
    Router::new()
        .route("/health", get(|| async { Json(json!({"status": "ok"})) }))
        .route("/version", get(|| async { Json(json!({"version": env!("CARGO_PKG_VERSION")})) }))
        .route("/create_session", post(create_session))
        .route("/create", post(create))
        .route("/ping", post(ping))
        .route("/delete", post(delete))
        .route("/delete_session", post(delete))
        .nest(&named, of_environment.clone())
        .merge(of_environment)
        .fallback(|| async { Refused::unknown("there is no such route") })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(hosted.clone())
        .merge(tasks::list(&hosted.suite))
        .nest(&named, tasks::router(&hosted.suite))
        .merge(tasks::router(&hosted.suite))
        .layer(middleware::from_fn_with_state(Arc::new(hosted.settings.clone()), let_in))
}

const SESSION: HeaderName = HeaderName::from_static("x-session-id");

async fn create_session(State(hosted): HostedState) -> Result<Response, Refused> {
    let most = hosted.settings.max_sessions;
    let key = hosted.sessions.open();
    let key = key.ok_or_else(|| {
        Refused::unavailable(format!("{most} episodes are open, which is the most"))
    })?;
    Ok(events(key.as_str(), ""))
}

/// What a client sends to start the episode of its session.
#[derive(Debug, Deserialize)]
struct Create {
    #[serde(default)]
    split: SplitName,
    #[serde(default)]
    index: Option<usize>,
    #[serde(default)]
    task_spec: Option<TaskSpec>,
    #[serde(default)]
    env_name: Option<String>,
}

async fn create(
    State(hosted): HostedState,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, Refused> {
    let (key, slot) = session(&hosted, &headers)?;
    let Create { split, index, task_spec, env_name } = read(&body)?;
    if let Some(name) = env_name.filter(|name| name != hosted.suite.name()) {
        return Err(Refused::unknown(format!("unknown environment '{name}'")));
    }
    let task = match (task_spec, index) {
        (Some(task), _) => task,
        (None, Some(id)) => TaskSpec { id, split, seed: None },
        (None, None) => return Err(Refused::bad("neither index nor task_spec names a task")),
    };
    let tasks = hosted.suite.tasks(task.split.split());
    if task.id >= tasks.len() {
        return Err(Refused::bad("Invalid task index"));
    }
    let seed = task.seed.unwrap_or_else(|| derive_seed(task.id as u64, 0));
    let form = hosted.settings.reward_form;
    let episode = HostedEpisode::start(&*tasks, task.id, seed, form).await;
    let episode = episode.map_err(|error| Refused::unavailable(error.to_string()))?;
    *slot.lock().await = Some(Played { episode, answered: None });
    Ok(Json(json!({"sid": key.as_str()})))
}

async fn prompt(State(hosted): HostedState, headers: HeaderMap) -> Result<Json<Value>, Refused> {
    let (_, slot) = session(&hosted, &headers)?;
    let slot = slot.lock().await;
    let Played { episode, .. } = slot.as_ref().ok_or_else(not_created)?;
    Ok(Json(json!([{"type": "text", "text": episode.prompt(&hosted.suite), "detail": null}])))
}

async fn tools(State(hosted): HostedState, headers: HeaderMap) -> Result<Json<Value>, Refused> {
    // Clients ask for the tools of the environment before they open a session.
    let slot = session(&hosted, &headers).ok().map(|(_, slot)| slot);
    let tools = match &slot {
        Some(slot) => slot.lock().await.as_ref().map(|played| played.episode.tools()),
        None => None,
    };
    let tools = tools.unwrap_or_else(|| first_tools(&hosted.suite));
    let tools = tools.into_iter().map(|ToolSpec { name, description, parameters }| {
        json!({"name": name, "description": description, "input_schema": parameters})
    });
    Ok(Json(json!({
        "tools": tools.collect::<Vec<_>>(),
        "terminal_tool": null,
        "supports_score_group": false,
        "message_block_types": ["text"],
    })))
}

/// A call of a tool.
#[derive(Debug, Deserialize)]
struct SentToolCall {
    name: String,
    #[serde(default)]
    input: Value,
    #[serde(default)]
    task_id: Option<String>,
}

async fn call(
    State(hosted): HostedState,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refused> {
    let (_, slot) = session(&hosted, &headers)?;
    let SentToolCall { name, input, task_id } = read(&body)?;
    let mut slot = slot.lock().await;
    let Played { episode, answered } = slot.as_mut().ok_or_else(not_created)?;
    if let (Some(asked), Some((known, answer))) = (&task_id, &answered)
        && asked == known
    {
        return Ok(events(known, answer));
    }
    let answer = match episode.call(&name, input).await {
        Ok(Called { text, reward, is_over, solved }) => {
            let metadata = if is_over { json!({"solved": solved}) } else { Value::Null };
            json!({"ok": true, "output": {
                "blocks": [{"text": text, "detail": null, "type": "text"}],
                "metadata": metadata,
                "reward": reward,
                "finished": is_over,
            }})
        }
        Err(CallFailure::Over) => failed("the episode is over", "episode_finished"),
        Err(CallFailure::UnknownTool) => {
            failed(&format!("'{name}' is not a valid tool"), "not_found")
        }
        Err(CallFailure::NoText) => failed("text is missing, or no string", "input_validation"),
        Err(CallFailure::Broken(error)) => {
            tracing::warn!(%error, "an environment broke");
            return Err(Refused::unavailable(error.to_string()));
        }
    };
    let id = task_id.unwrap_or_else(|| SessionKey::random().as_str().to_owned());
    let response = events(&id, &answer.to_string());
    *answered = Some((id, answer.to_string()));
    Ok(response)
}

fn failed(error: &str, reason: &str) -> Value {
    json!({"ok": false, "error": error, "reason": reason})
}

async fn ping(State(hosted): HostedState, headers: HeaderMap) -> Result<Json<Value>, Refused> {
    session(&hosted, &headers)?;
    Ok(Json(json!({"status": "ok"})))
}

async fn delete(State(hosted): HostedState, headers: HeaderMap) -> Result<Json<Value>, Refused> {
    let key = key_in(&headers)?;
    if !hosted.sessions.close(&key) {
        return Err(unknown_session());
    }
    Ok(Json(json!({"sid": key.as_str()})))
}

fn session(hosted: &Hosted, headers: &HeaderMap) -> Result<(SessionKey, Slot<Played>), Refused> {
    let key = key_in(headers)?;
    let slot = hosted.sessions.get(&key).ok_or_else(unknown_session)?;
    Ok((key, slot))
}

fn key_in(headers: &HeaderMap) -> Result<SessionKey, Refused> {
    let sent = headers.get(SESSION).and_then(|value| value.to_str().ok());
    sent.map(SessionKey::sent).ok_or_else(|| Refused::bad("the header X-Session-ID is missing"))
}

fn unknown_session() -> Refused {
    Refused::unknown(
        "no session has this id: it was deleted, or nothing was heard of it for too long",
    )
}

fn not_created() -> Refused {
    Refused::bad("this session has no episode yet: POST /create starts one")
}

/// The two events of an answer: the id of what was asked, and the answer.
fn events(id: &str, answer: &str) -> Response {
    let events =
        [Event::default().event("task_id").data(id), Event::default().event("end").data(answer)];
    Sse::new(stream::iter(events.map(Ok::<_, Infallible>))).into_response()
}
