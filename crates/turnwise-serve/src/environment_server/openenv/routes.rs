//! The routes of the server.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use turnwise_environment::Suite;

use super::super::guard::let_in;
use super::super::refused::Refused;
use super::super::sessions::HostedSessions;
use super::super::settings::{MAX_BODY_BYTES, ServerSettings};
use super::super::tasks;
use super::fault::EpisodeFault;
use super::hosted_games::HostedGames;
use super::json_rpc::{self, INVALID_PARAMS, PARSE_ERROR, RpcError, RpcRequest};
use super::play::{Attachment, Game, Play};
use super::schema;
use super::socket;
use crate::key::SessionKey;

/// Makes the server of a suite.
pub(in super::super) fn router(suite: Suite, settings: ServerSettings) -> Router {
    let timeout = Duration::from_secs(settings.session_timeout_s);
    let sessions = Arc::new(HostedSessions::new(settings.max_sessions, timeout));
    let named = format!("/{}", suite.name());
    let (of_tasks, list) = (tasks::router(&suite), tasks::list(&suite));
    let guard = middleware::from_fn_with_state(Arc::new(settings.clone()), let_in);
    let game = Arc::new(Game { suite, settings });
    Router::new()
        .route("/health", get(|| async { Json(json!({"status": "healthy"})) }))
        .route("/metadata", get(metadata))
        .route("/schema", get(|| async { Json(schema::schemas()) }))
        .route("/openapi.json", get(open_api))
        .route("/state", get(state))
        .route("/reset", post(reset))
        .route("/step", post(step))
        .route("/mcp", post(mcp).delete(end_mcp))
        .route("/ws", get(web_socket))
        .fallback(|| async { Refused::unknown("Not Found") })
        .with_state(HostedGames { game, sessions })
        .merge(list)
        .nest(&named, of_tasks)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(guard)
}

async fn metadata(State(hosted): State<HostedGames>) -> Json<Value> {
    Json(schema::metadata(&hosted.game.suite))
}

async fn open_api(State(hosted): State<HostedGames>) -> Json<Value> {
    Json(schema::open_api(&hosted.game.suite))
}

/// The state of an environment that exists for this request alone, as are those of `reset` and `step`.
async fn state(State(hosted): State<HostedGames>) -> Json<Value> {
    Json(Play::new(hosted.game).state())
}

async fn reset(State(hosted): State<HostedGames>, body: Bytes) -> Response {
    let data = match read(&body) {
        Ok(data) => data,
        Err(error) => return unprocessable(&[error]),
    };
    answered(Play::new(hosted.game).reset(&data).await)
}

async fn step(State(hosted): State<HostedGames>, body: Bytes) -> Response {
    let body = match read(&body) {
        Ok(body) => body,
        Err(error) => return unprocessable(&[error]),
    };
    let Some(action) = body.get("action") else {
        let error = json!({"type": "missing", "loc": ["body", "action"], "msg": "Field required", "input": body});
        return unprocessable(&[error]);
    };
    let mut play = Play::new(hosted.game);
    if let Err(fault) = play.reset(&json!({})).await {
        return answered(Err(fault));
    }
    answered(play.step(action).await)
}

/// Reads a body; an error is what is wrong with it.
fn read(body: &[u8]) -> Result<Value, Value> {
    if body.is_empty() {
        return Ok(json!({}));
    }
    serde_json::from_slice(body).map_err(|error| {
        json!({"type": "json_invalid", "loc": ["body"], "msg": error.to_string(), "input": {}})
    })
}

fn answered(answer: Result<Value, EpisodeFault>) -> Response {
    match answer {
        Ok(answer) => Json(answer).into_response(),
        Err(fault) if fault.errors.is_empty() => {
            let detail = Json(json!({"detail": fault.message}));
            (StatusCode::INTERNAL_SERVER_ERROR, detail).into_response()
        }
        Err(fault) => unprocessable(&fault.errors),
    }
}

fn unprocessable(errors: &[Value]) -> Response {
    (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({"detail": errors}))).into_response()
}

/// The session of a client of MCP, from `initialize` on.
const MCP_SESSION: HeaderName = HeaderName::from_static("mcp-session-id");

/// Answers JSON-RPC. A session is that of MCP's header, or the one in `params.session_id`; without one, each request has an
/// environment of its own.
async fn mcp(State(hosted): State<HostedGames>, headers: HeaderMap, body: Bytes) -> Response {
    let Ok(value) = serde_json::from_slice::<Value>(&body) else {
        return Json(json_rpc::error(None, PARSE_ERROR, "Parse error")).into_response();
    };
    let request = match RpcRequest::read(&value) {
        Ok(request) => request,
        Err(answer) => return Json(answer).into_response(),
    };
    let id = request.id.as_ref();
    if id.is_none() {
        // A notification.
        return StatusCode::ACCEPTED.into_response();
    }
    match request.method.as_str() {
        "initialize" => {
            let key = hosted.sessions.open();
            let result = json_rpc::respond(&mut Play::new(hosted.game), &request).await;
            let mut response = Json(json_rpc::answer(id, result)).into_response();
            let key = key.and_then(|key| HeaderValue::from_str(key.as_str()).ok());
            if let Some(key) = key {
                response.headers_mut().insert(MCP_SESSION, key);
            }
            response
        }
        "openenv/session/create" => {
            let created = hosted
                .sessions
                .open()
                .ok_or_else(|| (json_rpc::SERVER_ERROR, "too many sessions are open".to_owned()));
            let created = created.map(|key| json!({"session_id": key.as_str()}));
            Json(json_rpc::answer(id, created)).into_response()
        }
        "openenv/session/close" => {
            let closed = close(&hosted, request.params["session_id"].as_str()).await;
            Json(json_rpc::answer(id, closed)).into_response()
        }
        _ => in_session(&hosted, &headers, &request).await,
    }
}

/// Closes a session; one with a WebSocket closes with that.
async fn close(hosted: &HostedGames, named: Option<&str>) -> Result<Value, RpcError> {
    let key = named.map(SessionKey::sent);
    let slot = key.as_ref().and_then(|key| hosted.sessions.get(key));
    let (Some(key), Some(slot)) = (key, slot) else {
        return Err((INVALID_PARAMS, "no such session".to_owned()));
    };
    if let Some(play) = slot.lock().await.as_mut()
        && play.attachment != Attachment::Free
    {
        play.attachment = Attachment::Closing;
        return Ok(json!({"session_id": key.as_str(), "closed": false, "closing": true}));
    }
    hosted.sessions.close(&key);
    Ok(json!({"session_id": key.as_str(), "closed": true}))
}

async fn in_session(hosted: &HostedGames, headers: &HeaderMap, request: &RpcRequest) -> Response {
    let id = request.id.as_ref();
    let of_mcp = headers.get(MCP_SESSION).and_then(|value| value.to_str().ok());
    let named = of_mcp.or_else(|| request.params["session_id"].as_str()).map(SessionKey::sent);
    let Some(key) = named else {
        let result = json_rpc::respond(&mut Play::new(hosted.game.clone()), request).await;
        return Json(json_rpc::answer(id, result)).into_response();
    };
    let Some(slot) = hosted.sessions.get(&key) else {
        // By this status, a client of MCP knows that it has to begin anew.
        let answer = json_rpc::error(id, INVALID_PARAMS, "no such session");
        let status = if of_mcp.is_some() { StatusCode::NOT_FOUND } else { StatusCode::OK };
        return (status, Json(answer)).into_response();
    };
    let mut slot = slot.lock().await;
    let play = slot.get_or_insert_with(|| Play::new(hosted.game.clone()));
    let result = json_rpc::respond(play, request).await;
    Json(json_rpc::answer(id, result)).into_response()
}

async fn end_mcp(State(hosted): State<HostedGames>, headers: HeaderMap) -> StatusCode {
    let key = headers.get(MCP_SESSION).and_then(|value| value.to_str().ok());
    match key.map(SessionKey::sent).filter(|key| hosted.sessions.close(key)) {
        Some(_) => StatusCode::NO_CONTENT,
        None => StatusCode::NOT_FOUND,
    }
}

/// The session to which a WebSocket attaches.
#[derive(Debug, Deserialize)]
struct Attached {
    #[serde(default)]
    session_id: Option<String>,
}

async fn web_socket(
    State(hosted): State<HostedGames>,
    Query(attached): Query<Attached>,
    upgrade: WebSocketUpgrade,
) -> Response {
    let upgrade = upgrade.max_message_size(MAX_BODY_BYTES).max_frame_size(MAX_BODY_BYTES);
    upgrade.on_upgrade(move |socket| socket::serve(socket, hosted, attached.session_id))
}
