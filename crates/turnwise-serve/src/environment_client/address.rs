//! The address of a server.

use hyper::Uri;
use hyper::http::uri::{Authority, Scheme};
use turnwise_environment::EnvironmentError;

/// The base URL of a server: `http` or `https`, a host, and perhaps a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerAddress {
    scheme: Scheme,
    authority: Authority,
    /// The path before every route, without a slash at its end.
    path: String,
}

impl ServerAddress {
    /// Reads a URL.
    pub(crate) fn read(url: &str) -> Result<Self, EnvironmentError> {
        let wrong = |why: &str| {
            EnvironmentError::new(format!(
                "the URL {url:?} {why}; write it as in http://127.0.0.1:8000"
            ))
        };
        let uri: Uri = url.trim().parse().map_err(|_| wrong("cannot be read"))?;
        let parts = uri.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return Err(wrong("has no scheme or no host"));
        };
        if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
            return Err(wrong("is neither http nor https"));
        }
        if authority.as_str().contains('@') {
            return Err(EnvironmentError::new(
                "the URL has a user name or a password; put a token in a file, and name the file (`token_file`)",
            ));
        }
        let path = parts.path_and_query.map(|path| path.to_string()).unwrap_or_default();
        if path.contains('?') {
            return Err(wrong("has a query"));
        }
        Ok(Self { scheme, authority, path: path.trim_end_matches('/').to_owned() })
    }

    /// Returns the URL of a route, which begins with a slash.
    pub(crate) fn route(&self, route: &str) -> Result<Uri, EnvironmentError> {
        let Self { scheme, authority, path } = self;
        let uri = format!("{scheme}://{authority}{path}{route}").parse();
        uri.map_err(|error| {
            EnvironmentError::new(format!("`{route}` is no route of a URL")).caused_by(error)
        })
    }

    /// Returns where a redirect leads, if it stays at this server.
    pub(crate) fn redirected(&self, location: &str) -> Option<Uri> {
        let Self { scheme, authority, .. } = self;
        let uri: Uri = location.parse().ok()?;
        match (uri.scheme(), uri.authority()) {
            (None, None) if location.starts_with('/') && !location.starts_with("//") => {
                format!("{scheme}://{authority}{location}").parse().ok()
            }
            (Some(to), Some(host)) if to == scheme && host == authority => Some(uri),
            _ => None,
        }
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// Returns whether the server is named as one of this machine.
    pub(crate) fn is_local(&self) -> bool {
        let host = self.authority.host().trim_start_matches('[').trim_end_matches(']');
        let address = host.parse::<std::net::IpAddr>();
        host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
    }
}

impl std::fmt::Display for ServerAddress {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}://{}{}", self.scheme, self.authority, self.path)
    }
}

/// Writes a name as one segment of a path.
pub(crate) fn segment(name: &str) -> String {
    use std::fmt::Write;
    let mut segment = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_~".contains(&byte) {
            segment.push(char::from(byte));
        } else {
            write!(segment, "%{byte:02X}").expect("a string takes what is written");
        }
    }
    segment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_scheme_a_host_and_a_path() {
        let address = ServerAddress::read("https://example.org/toy/").unwrap();
        assert_eq!(address.route("/health").unwrap(), "https://example.org/toy/health");
        assert!(address.is_encrypted() && !address.is_local());
        for url in ["http://127.0.0.1:8000", "http://localhost:1/", "http://[::1]:8000"] {
            assert!(ServerAddress::read(url).unwrap().is_local(), "{url}");
        }
        for url in ["", "127.0.0.1:8000", "ws://a", "file:///etc/passwd", "http://a?b=c", "/a"] {
            assert!(ServerAddress::read(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_password_in_an_address_is_refused_without_being_repeated() {
        let error = ServerAddress::read("http://me:hunter2@example.org").unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn a_redirect_stays_at_its_server() {
        let address = ServerAddress::read("http://127.0.0.1:8000/x").unwrap();
        let to = |location| address.redirected(location).map(|uri| uri.to_string());
        assert_eq!(to("/toy/tools").as_deref(), Some("http://127.0.0.1:8000/toy/tools"));
        assert!(to("http://127.0.0.1:8000/toy/tools").is_some());
        for location in [
            "https://127.0.0.1:8000/a",
            "http://127.0.0.1:8001/a",
            "http://evil/a",
            "//evil/a",
            "a",
        ] {
            assert_eq!(to(location), None, "{location}");
        }
    }

    #[test]
    fn a_name_of_a_peer_is_one_segment() {
        assert_eq!(segment("word-game_2"), "word-game_2");
        assert_eq!(segment("../a b?c"), "%2E%2E%2Fa%20b%3Fc");
    }
}
