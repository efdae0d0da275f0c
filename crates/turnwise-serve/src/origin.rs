//! Protection against web pages that reach a local server through the user's browser.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;
use axum::http::header::{HOST, ORIGIN};

use crate::api_error::ApiError;

/// Refuses requests whose host is another machine's name, or that a web page makes.
///
/// A page of another site may send requests to this machine (its `Origin` says so), and a name of that site may lead here
/// (its `Host` says so: DNS rebinding). Programs send neither.
pub(crate) fn check(headers: &HeaderMap, bound: SocketAddr) -> Result<(), ApiError> {
    if headers.contains_key(ORIGIN) {
        return Err(ApiError::forbidden(
            "web pages have no access: the request has an Origin header",
        ));
    }
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if is_own(host, bound) {
        return Ok(());
    }
    Err(ApiError::forbidden("the Host header names another machine"))
}

fn is_own(host: &str, bound: SocketAddr) -> bool {
    let name = match host.parse::<SocketAddr>() {
        Ok(address) => return is_own_address(address.ip(), bound),
        Err(_) => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    match name.parse::<IpAddr>() {
        Ok(address) => is_own_address(address, bound),
        Err(_) => name.eq_ignore_ascii_case("localhost") && bound.ip().is_loopback(),
    }
}

/// A numeric address cannot be rebound. One that is bound everywhere is reached by any of the machine's.
fn is_own_address(address: IpAddr, bound: SocketAddr) -> bool {
    address == bound.ip()
        || bound.ip().is_unspecified()
        || bound.ip().is_loopback() && address.is_loopback()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn is_refused(host: &'static str, origin: Option<&'static str>, bound: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static(host));
        if let Some(origin) = origin {
            headers.insert(ORIGIN, HeaderValue::from_static(origin));
        }
        check(&headers, bound.parse().unwrap()).is_err()
    }

    #[test]
    fn programs_get_in_and_web_pages_do_not() {
        let bound = "127.0.0.1:8000";
        for host in ["127.0.0.1:8000", "localhost:8000", "localhost", "[::1]:8000"] {
            assert!(!is_refused(host, None, bound), "{host}");
            assert!(is_refused(host, Some("https://evil.example"), bound), "{host}");
        }
        for host in
            ["evil.example:8000", "evil.example", "", "localhost.evil.example", "10.0.0.1:8000"]
        {
            assert!(is_refused(host, None, bound), "{host}");
        }
        assert!(!is_refused("10.0.0.1:8000", None, "0.0.0.0:8000"));
        assert!(is_refused("localhost:8000", None, "10.0.0.1:8000"));
        assert!(is_refused("evil.example:8000", None, "0.0.0.0:8000"));
    }
}
