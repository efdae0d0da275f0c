//! Requests that are sent again while a server starts.

use std::error::Error;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER,
};
use hyper::http::StatusCode;
use hyper::{Response, Uri};
use serde_json::Value;
use tokio::time::timeout;
use turnwise_environment::EnvironmentError;

use super::fault::{malformed, shown};
use super::patience::BackOff;
use super::peer::Peer;

/// The largest answer and the largest frame, in bytes.
pub(crate) const MAX_BYTES: usize = 16 << 20;

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) method: &'static str,
    pub(crate) route: &'a str,
    pub(crate) body: Option<Value>,
    /// The session that it belongs to.
    pub(crate) session: Option<&'a str>,
    /// When it may be sent again.
    pub(crate) again: Again,
}

/// When a request is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// After any failure that may pass: twice does no more than once.
    Freely,
    /// Only if it cannot have been carried out.
    Unreached,
}

/// An answer: its status and its whole body.
#[derive(Clone, Debug)]
pub(crate) struct HttpAnswer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

const SESSION: HeaderName = HeaderName::from_static("x-session-id");
const STATE: HeaderName = HeaderName::from_static("x-backend-state");

/// The most redirects of one request.
const MAX_REDIRECTS: usize = 3;

impl<'a> Ask<'a> {
    pub(crate) fn get(route: &'a str) -> Self {
        Self { method: "GET", route, body: None, session: None, again: Again::Freely }
    }

    pub(crate) fn post(route: &'a str, body: Value) -> Self {
        Self { method: "POST", route, body: Some(body), session: None, again: Again::Freely }
    }

    pub(crate) fn of(self, session: &'a str) -> Self {
        Self { session: Some(session), ..self }
    }

    pub(crate) fn once(self) -> Self {
        Self { again: Again::Unreached, ..self }
    }
}

impl HttpAnswer {
    /// Reads the body as JSON.
    pub(crate) fn json(&self, route: &str) -> Result<Value, EnvironmentError> {
        serde_json::from_slice(&self.body).map_err(|error| malformed(route, error))
    }

    /// Returns the answer of a request that has to succeed.
    pub(crate) fn expected(self, route: &str) -> Result<Self, EnvironmentError> {
        if self.status.is_success() { Ok(self) } else { Err(self.refused(route)) }
    }

    /// Returns the error for a refusal.
    pub(crate) fn refused(&self, route: &str) -> EnvironmentError {
        let said = shown(&String::from_utf8_lossy(&self.body));
        EnvironmentError::new(format!("the server answered {route} with {}: {said}", self.status))
    }
}

impl Peer {
    /// Sends a request, and returns the JSON of an answer that has to succeed.
    pub(crate) async fn json(&self, ask: Ask<'_>) -> Result<Value, EnvironmentError> {
        let route = ask.route;
        self.answer(ask).await?.expected(route)?.json(route)
    }

    /// Sends a request, and returns its whole answer, whatever its status.
    pub(crate) async fn answer(&self, ask: Ask<'_>) -> Result<HttpAnswer, EnvironmentError> {
        let route = ask.route;
        let response = self.response(&ask).await?;
        self.whole(route, response).await
    }

    /// Sends a request, and returns the answer before its body is there.
    pub(crate) async fn response(
        &self,
        ask: &Ask<'_>,
    ) -> Result<Response<Incoming>, EnvironmentError> {
        let mut passing = BackOff::new(Duration::from_secs(30).min(self.patience.ready));
        let mut starting = BackOff::new(self.patience.ready);
        loop {
            let sent = timeout(self.patience.answer, self.redirected(ask)).await;
            let sent = sent.map_err(|_| self.late(ask.route))?;
            let (pause, failure) = match sent {
                Ok(response) => match wait_of(&response, ask.again) {
                    None => return Ok(response),
                    Some(Wait { asked, is_starting }) => {
                        let back_off = if is_starting { &mut starting } else { &mut passing };
                        let pause = back_off.pause(asked);
                        (pause, Unanswered::Refused(response))
                    }
                },
                Err(failure) => (passing.pause(None), failure),
            };
            let may = match &failure {
                Unanswered::Final(_) => false,
                Unanswered::Lost(_) => ask.again == Again::Freely,
                Unanswered::Unreached(_) | Unanswered::Refused(_) => true,
            };
            match (pause, failure) {
                (Some(pause), _) if may => tokio::time::sleep(pause).await,
                (_, Unanswered::Refused(response)) => {
                    return Err(self.whole(ask.route, response).await?.refused(ask.route));
                }
                (
                    _,
                    Unanswered::Final(error)
                    | Unanswered::Lost(error)
                    | Unanswered::Unreached(error),
                ) => {
                    return Err(error);
                }
            }
        }
    }

    /// Reads the whole body of an answer.
    async fn whole(
        &self,
        route: &str,
        response: Response<Incoming>,
    ) -> Result<HttpAnswer, EnvironmentError> {
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BYTES).collect();
        let body = timeout(self.patience.answer, body).await.map_err(|_| self.late(route))?;
        let body = body.map_err(|error| broken(route, error))?;
        Ok(HttpAnswer { status, body: body.to_bytes() })
    }

    /// Sends a request, and follows redirects that keep its method and stay at the server.
    async fn redirected(&self, ask: &Ask<'_>) -> Result<Response<Incoming>, Unanswered> {
        let mut uri = self.address.route(ask.route).map_err(Unanswered::Final)?;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.once(ask, uri.clone()).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let to = location.and_then(|location| self.address.redirected(location));
            let Some(to) = to.filter(|_| response.status() == StatusCode::PERMANENT_REDIRECT)
            else {
                let location = shown(location.unwrap_or("nowhere"));
                return Err(Unanswered::Final(EnvironmentError::new(format!(
                    "the server redirects {} to {location}, which is not followed: give the URL of the server itself",
                    ask.route
                ))));
            };
            uri = to;
        }
        let message = format!("the server redirects {} in a circle", ask.route);
        Err(Unanswered::Final(EnvironmentError::new(message)))
    }

    async fn once(&self, ask: &Ask<'_>, uri: Uri) -> Result<Response<Incoming>, Unanswered> {
        let mut request = self.request(ask.method, uri);
        if let Some(session) = ask.session {
            let session = HeaderValue::from_str(session).map_err(|_| {
                Unanswered::Final(malformed("create_session", "the session's id is no header"))
            })?;
            request = request.header(SESSION, session);
        }
        let body = match &ask.body {
            None => Bytes::new(),
            Some(body) => {
                request = request.header(CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
        };
        let request = request.header(ACCEPT, "application/json, text/event-stream");
        let request = request.body(Full::new(body)).map_err(|error| {
            Unanswered::Final(EnvironmentError::new("cannot make a request").caused_by(error))
        })?;
        self.client.request(request).await.map_err(|error| {
            let is_unreached = error.is_connect();
            let what = if is_unreached {
                format!("cannot reach {}", self.address)
            } else {
                format!("the server's answer to {} broke off", ask.route)
            };
            let error = EnvironmentError::new(what).caused_by(error);
            if is_unreached { Unanswered::Unreached(error) } else { Unanswered::Lost(error) }
        })
    }

    pub(crate) fn late(&self, what: &str) -> EnvironmentError {
        let seconds = self.patience.answer.as_secs_f64();
        EnvironmentError::new(format!(
            "the server did not answer {what} in {seconds} s; `timeout_s` sets the time"
        ))
    }
}

/// The reason why a request has no answer.
enum Unanswered {
    /// Nothing will change.
    Final(EnvironmentError),
    /// No connection was made, so that the server knows nothing of the request.
    Unreached(EnvironmentError),
    /// The connection broke, and the request may have been carried out.
    Lost(EnvironmentError),
    /// The server wants to be asked later.
    Refused(Response<Incoming>),
}

/// How long a server wants to be left alone.
struct Wait {
    asked: Option<Duration>,
    is_starting: bool,
}

/// Returns whether, and how long, to wait after an answer.
fn wait_of(response: &Response<Incoming>, again: Again) -> Option<Wait> {
    let is_starting = is_starting(response.headers());
    let passes = matches!(response.status().as_u16(), 429 | 502 | 503 | 504);
    // Without the header, the request may have been carried out before its answer got lost.
    let may = match again {
        Again::Freely => passes,
        Again::Unreached => response.status() == StatusCode::SERVICE_UNAVAILABLE && is_starting,
    };
    may.then(|| Wait { asked: asked_wait(response.headers()), is_starting })
}

fn is_starting(headers: &HeaderMap) -> bool {
    headers.get(STATE).is_some_and(|state| state == "starting")
}

/// Returns the pause that a server asks for in seconds. A date is as good as nothing.
fn asked_wait(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Returns the error for a body that breaks off or is too large.
pub(crate) fn broken(route: &str, error: Box<dyn Error + Send + Sync>) -> EnvironmentError {
    if error.is::<LengthLimitError>() {
        return malformed(route, format!("it is longer than {} MiB", MAX_BYTES >> 20));
    }
    EnvironmentError::new(format!("the server's answer to {route} broke off")).caused_by(error)
}
