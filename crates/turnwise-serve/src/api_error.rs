//! Errors that a client of the gateway reads.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// An error in the form that both surfaces' clients read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
}

impl ApiError {
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    pub(crate) fn unknown_session() -> Self {
        let message = "no session has this key: the episode is over, or OPENAI_BASE_URL and the key are of another one";
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message)
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    /// The episode ended while the request waited.
    pub(crate) fn over() -> Self {
        Self::new(StatusCode::GONE, "invalid_request_error", "the episode is over")
    }

    pub(crate) fn busy() -> Self {
        let message = "too many requests of this session wait for each other";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found_error", message)
    }

    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into() }
    }
}

impl ApiError {
    /// Returns the body, in which the packages `openai` and `anthropic` both find the message.
    pub(crate) fn body(&self) -> Value {
        let Self { kind, message, .. } = self;
        json!({
            "type": "error",
            "error": {"message": message, "type": kind, "param": null, "code": null},
        })
    }
}

impl IntoResponse for ApiError {
    /// None of the statuses is one after which clients try again (409 and 5xx), but for that of a busy session.
    fn into_response(self) -> Response {
        (self.status, Json(self.body())).into_response()
    }
}
