//! The routes of the server.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{self, Next};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream::{self, Stream, StreamExt};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;
use turnwise_environment::{Action, CallAttempt, Message, Observation, Step, ToolCall};

use crate::answer::ChatAnswer;
use crate::api_error::ApiError;
use crate::call::{Event, ModelCall, Rewarded};
use crate::key::SessionKey;
use crate::openai::{
    ChatRequest, ChatStream, ResponsesRequest, completion, responded, response_events,
};
use crate::session::{Session, SessionTable};
use crate::{anthropic, origin};

/// What all routes share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) sessions: SessionTable,
    pub(crate) address: SocketAddr,
    pub(crate) model: String,
}

type SharedState = State<Arc<Shared>>;

/// The key in the path; without one, the key is the client's API key.
type KeyInPath = Option<Path<String>>;

pub(crate) fn router(shared: Shared, max_body_bytes: usize) -> Router {
    let shared = Arc::new(shared);
    let surfaces = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/responses", post(responses))
        .route("/v1/messages", post(messages));
    let of_session = Router::new()
        .route("/task", get(task))
        .route("/step", post(step))
        .route("/reward", post(reward))
        .route("/end", post(end));
    Router::new()
        .route("/health", get(|| async { Json(json!({"status": "ok"})) }))
        .merge(surfaces.clone())
        .nest("/s/{session}", surfaces.merge(of_session))
        .fallback(|| async { ApiError::not_found("there is no such route") })
        .layer(DefaultBodyLimit::max(max_body_bytes))
        .layer(middleware::from_fn_with_state(shared.clone(), refuse_strangers))
        .with_state(shared)
}

async fn refuse_strangers(State(shared): SharedState, request: Request, next: Next) -> Response {
    match origin::check(request.headers(), shared.address) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

async fn models(State(shared): SharedState) -> Json<Value> {
    let model =
        json!({"id": shared.model, "object": "model", "created": 0, "owned_by": "turnwise"});
    Json(json!({"object": "list", "data": [model], "has_more": false}))
}

async fn chat(
    State(shared): SharedState,
    path: KeyInPath,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let (session, request) = asked::<ChatRequest>(&shared, path, &headers, &body)?;
    let model = named(&request.model, &shared);
    let (streams, counts) = (request.stream == Some(true), request.counts_in_stream());
    let has_logprobs = request.logprobs == Some(true);
    let id = shared.sessions.new_request();
    let stream = ChatStream { id, model: model.clone(), has_logprobs, counts };
    let whole = move |answers: &[ChatAnswer]| completion(id, &model, answers, has_logprobs);
    let pieces = move |answers: &[ChatAnswer]| {
        let each = stream.events(answers).into_iter();
        each.map(|data| sse::Event::default().data(data)).collect()
    };
    answered(&session, request.call()?, streams, whole, pieces).await
}

async fn messages(
    State(shared): SharedState,
    path: KeyInPath,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let (session, request) = asked::<anthropic::MessagesRequest>(&shared, path, &headers, &body)?;
    let (model, streams) = (named(&request.model, &shared), request.stream);
    let (id, of_stream) = (shared.sessions.new_request(), model.clone());
    let whole = move |answers: &[ChatAnswer]| anthropic::message(id, &model, &answers[0]);
    let pieces = move |answers: &[ChatAnswer]| {
        named_events(anthropic::stream_events(id, &of_stream, &answers[0]))
    };
    answered(&session, request.call()?, streams, whole, pieces).await
}

async fn responses(
    State(shared): SharedState,
    path: KeyInPath,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let (session, request) = asked::<ResponsesRequest>(&shared, path, &headers, &body)?;
    let (model, streams) = (named(&request.model, &shared), request.streams());
    let (id, of_stream) = (shared.sessions.new_request(), model.clone());
    let whole = move |answers: &[ChatAnswer]| responded(id, &model, &answers[0]);
    let pieces =
        move |answers: &[ChatAnswer]| named_events(response_events(id, &of_stream, &answers[0]));
    answered(&session, request.call()?, streams, whole, pieces).await
}

/// Reads a request of a session.
fn asked<T: DeserializeOwned>(
    shared: &Shared,
    path: KeyInPath,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<(Arc<Session>, T), ApiError> {
    Ok((session(shared, path, headers)?, read(body)?))
}

/// Asks for the answers to a call, and writes them whole or as events.
async fn answered(
    session: &Session,
    call: ModelCall,
    streams: bool,
    whole: impl FnOnce(&[ChatAnswer]) -> Value,
    pieces: impl Fn(&[ChatAnswer]) -> Vec<sse::Event> + Send + 'static,
) -> Result<Response, ApiError> {
    let answers = ask(session, call)?;
    if streams {
        return Ok(events(answers, pieces));
    }
    Ok(Json(whole(&received(answers).await?)).into_response())
}

fn named_events(events: Vec<(&'static str, Value)>) -> Vec<sse::Event> {
    let each = events.into_iter();
    each.map(|(name, data)| sse::Event::default().event(name).data(data.to_string())).collect()
}

/// Returns what the environment behind the program says first.
async fn task(
    State(shared): SharedState,
    path: KeyInPath,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let session = session(&shared, path, &headers)?;
    let (reply, task) = oneshot::channel();
    send(&session, Event::Task(reply))?;
    let task = task.await.map_err(|_| ApiError::over())?;
    let (Observation { messages, .. }, tools) = task.ok_or_else(no_environment)?;
    let tools: Vec<Value> = tools.iter().map(turnwise_environment::ToolSpec::to_function).collect();
    Ok(Json(json!({"messages": sent(&messages), "tools": tools})))
}

/// An action that a program takes in the environment behind it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SentAction {
    #[serde(default)]
    content: String,
    #[serde(default)]
    tool_calls: Vec<SentActionCall>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SentActionCall {
    #[serde(default)]
    id: String,
    name: String,
    arguments: Value,
}

async fn step(
    State(shared): SharedState,
    path: KeyInPath,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    let session = session(&shared, path, &headers)?;
    let SentAction { content, tool_calls } = read(&body)?;
    let calls = tool_calls.into_iter().map(|call| {
        CallAttempt::Call(ToolCall { id: call.id, name: call.name, arguments: call.arguments })
    });
    let action = Action { calls: calls.collect(), ..Action::text(content) };
    let (reply, answer) = oneshot::channel();
    send(&session, Event::Act(action, reply))?;
    let step = answer.await.map_err(|_| ApiError::over())?.ok_or_else(no_environment)?;
    Ok(Json(match step {
        Step::Next { observation, reward, .. } => {
            json!({"messages": sent(&observation.messages), "reward": reward, "done": false})
        }
        Step::End { reward, solved, .. } => {
            json!({"messages": [], "reward": reward, "done": true, "solved": solved})
        }
    }))
}

/// A reward that a program gives itself.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SentReward {
    reward: f64,
    #[serde(default)]
    turn: Option<usize>,
    #[serde(default)]
    solved: Option<bool>,
}

async fn reward(
    State(shared): SharedState,
    path: KeyInPath,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    let session = session(&shared, path, &headers)?;
    let SentReward { reward, turn, solved } = read(&body)?;
    send(&session, Event::Reward(Rewarded { reward, turn, solved }))?;
    Ok(Json(json!({"ok": true})))
}

async fn end(
    State(shared): SharedState,
    path: KeyInPath,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    send(&*session(&shared, path, &headers)?, Event::End)?;
    Ok(Json(json!({"ok": true})))
}

fn session(
    shared: &Shared,
    path: KeyInPath,
    headers: &HeaderMap,
) -> Result<Arc<Session>, ApiError> {
    let key = match path {
        Some(Path(key)) => Some(SessionKey::sent(&key)),
        None => key_in(headers),
    };
    key.and_then(|key| shared.sessions.get(&key)).ok_or_else(ApiError::unknown_session)
}

/// Returns the key that OpenAI's or Anthropic's client sends.
fn key_in(headers: &HeaderMap) -> Option<SessionKey> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = text(AUTHORIZATION.as_str()).and_then(|value| value.strip_prefix("Bearer "));
    bearer.or_else(|| text("x-api-key")).map(SessionKey::sent)
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("cannot read the request: {error}")))
}

fn named(asked: &str, shared: &Shared) -> String {
    if asked.is_empty() { shared.model.clone() } else { asked.to_owned() }
}

fn send(session: &Session, event: Event) -> Result<(), ApiError> {
    session.events.try_send(event).map_err(|error| match error {
        TrySendError::Full(_) => ApiError::busy(),
        TrySendError::Closed(_) => ApiError::over(),
    })
}

/// The answers to a request, once the episode has them.
type Pending = oneshot::Receiver<Vec<ChatAnswer>>;

fn ask(session: &Session, call: ModelCall) -> Result<Pending, ApiError> {
    let (reply, answers) = oneshot::channel();
    let messages = session.recognise(call.messages);
    send(session, Event::Call(ModelCall { messages, ..call }, reply))?;
    Ok(answers)
}

async fn received(answers: Pending) -> Result<Vec<ChatAnswer>, ApiError> {
    answers.await.map_err(|_| ApiError::over())
}

/// Streams a response, once it is there; until then, comments show the client that somebody works on it.
fn events(
    answers: Pending,
    of: impl Fn(&[ChatAnswer]) -> Vec<sse::Event> + Send + 'static,
) -> Response {
    let whole = stream::once(async move {
        let events = match received(answers).await {
            Ok(answers) => of(&answers),
            Err(error) => vec![sse::Event::default().event("error").data(error.body().to_string())],
        };
        stream::iter(events)
    });
    Sse::new(infallible(whole.flatten())).keep_alive(KeepAlive::default()).into_response()
}

fn infallible<T>(stream: impl Stream<Item = T>) -> impl Stream<Item = Result<T, Infallible>> {
    stream.map(Ok)
}

fn no_environment() -> ApiError {
    ApiError::not_found("no environment stands behind this program, or its episode is over")
}

/// Returns messages as OpenAI's clients read them.
fn sent(messages: &[Message]) -> Vec<Value> {
    let each = messages.iter().map(|message| {
        let mut value = json!({"role": message.role, "content": message.content});
        if let Some(id) = &message.tool_call_id {
            value["tool_call_id"] = json!(id);
        }
        value
    });
    each.collect()
}
