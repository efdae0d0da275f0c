//! Who may come in.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HeaderName};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::settings::ServerSettings;
use crate::origin;

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Lets in no web page, and only clients that have the token, if there is one.
pub(super) async fn let_in(
    State(settings): State<Arc<ServerSettings>>,
    request: Request,
    next: Next,
) -> Response {
    if let Err(error) = origin::check(request.headers(), settings.address) {
        return error.into_response();
    }
    if !is_known(request.headers(), &settings) && request.uri().path() != "/health" {
        let detail = "neither X-API-Key nor Authorization has the server's token";
        return (StatusCode::UNAUTHORIZED, Json(json!({"detail": detail}))).into_response();
    }
    next.run(request).await
}

/// Returns whether a client has the token, if there is one.
fn is_known(headers: &HeaderMap, settings: &ServerSettings) -> bool {
    let Some(token) = settings.token.as_deref() else { return true };
    let sent = |name: &HeaderName| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.map(|value| value.strip_prefix("Bearer ").unwrap_or(value))
    };
    sent(&API_KEY) == Some(token) || sent(&AUTHORIZATION) == Some(token)
}
