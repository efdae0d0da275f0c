//! The routes of a trainer.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use turnwise_rollout::EpisodeSnapshot;
use turnwise_trajectory::Trajectory;

use super::hub::HubState;
use super::jobs::{Returned, short};
use super::wire::{
    Draw, Drawn, Heartbeat, LeaseRequest, LeaseVerdict, Leases, OfSession, Pulse, Report, Reported,
    Welcome,
};
use crate::origin;

/// The largest report, in bytes: an episode of some hundred thousand tokens.
const MAX_REPORT: usize = 64 << 20;
/// The longest time that a worker waits for an episode before it asks again.
const POLL: Duration = Duration::from_secs(2);

type Hub = State<Arc<HubState>>;

pub(super) fn router(state: Arc<HubState>) -> Router {
    Router::new()
        .route("/workers", post(welcome))
        .route("/leases", post(lease))
        .route("/reports", post(report))
        .route("/heartbeat", post(heartbeat))
        .route("/sample", post(sample))
        .route("/interrupt", post(interrupt))
        .route("/release", post(release))
        .layer(middleware::from_fn_with_state(state.clone(), let_in))
        .route("/health", get(|| async { Json(json!({"status": "ok"})) }))
        .layer(DefaultBodyLimit::max(MAX_REPORT))
        .with_state(state)
}

/// Lets in no web page, and only workers that have the token, if there is one.
async fn let_in(State(state): Hub, request: Request, next: Next) -> Response {
    if let Err(error) = origin::check(request.headers(), state.address) {
        return error.into_response();
    }
    let sent = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let sent = sent.and_then(|value| value.strip_prefix("Bearer "));
    if state.token.is_some() && sent != state.token.as_deref() {
        return refusal(StatusCode::UNAUTHORIZED, "Authorization lacks the trainer's token");
    }
    next.run(request).await
}

fn refusal(status: StatusCode, detail: &str) -> Response {
    (status, Json(json!({"detail": detail}))).into_response()
}

/// The answer to a worker that the trainer does not know any more.
fn unknown() -> Response {
    refusal(StatusCode::GONE, "this worker was silent for too long; join again")
}

async fn welcome(State(state): Hub) -> Json<Welcome> {
    let worker = state.jobs().welcome(Instant::now());
    tracing::info!(worker = short(&worker), "a worker joins");
    Json(Welcome { worker, run: state.run.clone(), lease_s: state.lease.as_secs_f64() })
}

async fn lease(State(state): Hub, Json(wanted): Json<LeaseRequest>) -> Response {
    let until = Instant::now() + patience();
    loop {
        let waits = state.waits.notified();
        let leases = {
            let (now, mut jobs) = (Instant::now(), state.jobs());
            if !jobs.hear(&wanted.worker, now) {
                return unknown();
            }
            if state.is_over() {
                jobs.leave(&wanted.worker);
                let version = state.engine().map(|engine| engine.version()).unwrap_or_default();
                return Json(Leases { given: Vec::new(), version, is_over: true }).into_response();
            }
            jobs.reap(now, state.lease);
            jobs.lease(&wanted.worker, wanted.n, now)
        };
        let rest = until.saturating_duration_since(Instant::now());
        if leases.is_empty() && !rest.is_zero() {
            let _ = timeout(rest, waits).await;
            continue;
        }
        if !leases.is_empty() {
            // There may be more, for others.
            state.waits.notify_one();
        }
        let version = state.engine().map(|engine| engine.version()).unwrap_or_default();
        return Json(Leases { given: leases, version, is_over: false }).into_response();
    }
}

/// Returns how long a worker waits. Workers that are started and killed by the clock must not ask by the same clock: each could
/// take the episodes of the one before it just when it dies.
fn patience() -> Duration {
    let mut byte = [0];
    getrandom::fill(&mut byte).expect("the system has random numbers");
    POLL.mul_f64(0.5 + f64::from(byte[0]) / 512.0)
}

async fn report(State(state): Hub, Json(report): Json<Report>) -> Response {
    let Report { worker, lease, state: reported } = report;
    if !state.jobs().hear(&worker, Instant::now()) {
        return unknown();
    }
    match verdict(&state, &worker, &lease, reported) {
        Ok(verdict) => Json(verdict).into_response(),
        Err(reason) => {
            tracing::warn!(worker = short(&worker), "a report is refused: {reason}");
            state.jobs().refuse(&worker, &lease);
            state.waits.notify_one();
            refusal(StatusCode::UNPROCESSABLE_ENTITY, &reason)
        }
    }
}

/// Takes a report, unless it is not one of the lease's episode.
fn verdict(
    state: &HubState,
    worker: &str,
    lease: &str,
    reported: Reported,
) -> Result<LeaseVerdict, String> {
    match reported {
        Reported::Turn { episode, n_sampled } => {
            check(state, worker, lease, &episode)?;
            Ok(state.jobs().turn(worker, lease, *episode, n_sampled))
        }
        Reported::Suspended { episode } => {
            check(state, worker, lease, &episode)?;
            Ok(state.jobs().end(worker, lease, Returned::Suspended(episode)))
        }
        Reported::Finished { trajectory } => {
            check_finished(state, worker, lease, &trajectory)?;
            Ok(state.jobs().end(worker, lease, Returned::Finished(trajectory)))
        }
        Reported::Unchanged => Ok(state.jobs().end(worker, lease, Returned::Unchanged)),
        Reported::Refused { reason } => {
            let reason = reason.chars().take(500).collect::<String>();
            tracing::warn!(worker = short(worker), "a worker cannot make an episode: {reason}");
            let verdict = state.jobs().refuse(worker, lease);
            state.waits.notify_one();
            Ok(verdict)
        }
    }
}

fn check(
    state: &HubState,
    worker: &str,
    lease: &str,
    episode: &EpisodeSnapshot,
) -> Result<(), String> {
    {
        let jobs = state.jobs();
        // A lease that is not current is answered, not refused.
        let Some(known) = jobs.of_lease(worker, lease) else { return Ok(()) };
        if known.identity() != episode.identity() {
            return Err("it is of another episode".to_owned());
        }
    }
    state.check(episode.clone()).map_err(|error| error.to_string())
}

fn check_finished(
    state: &HubState,
    worker: &str,
    lease: &str,
    trajectory: &Trajectory,
) -> Result<(), String> {
    let jobs = state.jobs();
    let Some(known) = jobs.of_lease(worker, lease) else { return Ok(()) };
    let all = std::iter::once(trajectory).chain(&trajectory.others);
    if all.clone().any(|one| one.identity != *known.identity()) {
        return Err("it is of another episode".to_owned());
    }
    Ok(())
}

async fn heartbeat(State(state): Hub, Json(heartbeat): Json<Heartbeat>) -> Response {
    let (now, mut jobs) = (Instant::now(), state.jobs());
    if !jobs.hear(&heartbeat.worker, now) {
        return unknown();
    }
    jobs.reap(now, state.lease);
    let pulse: Pulse = jobs.pulse(&heartbeat, now, state.lease);
    if jobs.has_waiting() {
        state.waits.notify_one();
    }
    Json(pulse).into_response()
}

/// Samples with the trainer's engine. A worker that hangs up drops the request.
async fn sample(State(state): Hub, Json(draw): Json<Draw>) -> Response {
    if !state.jobs().hear(&draw.worker, Instant::now()) {
        return unknown();
    }
    let drawn = match state.engine() {
        Some(engine) => Drawn::from(engine.sample(draw.request).await),
        None => Drawn::Unavailable("no episode runs".to_owned()),
    };
    Json(drawn).into_response()
}

async fn interrupt(State(state): Hub, Json(of): Json<OfSession>) -> Json<Value> {
    let was_open = state.engine().is_some_and(|engine| engine.interrupt(of.session));
    Json(json!({"was_open": was_open}))
}

async fn release(State(state): Hub, Json(of): Json<OfSession>) -> StatusCode {
    if let Some(engine) = state.engine() {
        engine.release(of.session);
    }
    StatusCode::NO_CONTENT
}
