//! A server that is reached by HTTP.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use http_body_util::Full;
use hyper::Uri;
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use hyper::http::request::Builder;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use turnwise_environment::EnvironmentError;

use super::address::ServerAddress;
use super::patience::Patience;

/// The client of a server. It follows no proxy and no redirect by itself.
pub(crate) struct Peer {
    pub(crate) address: ServerAddress,
    pub(crate) patience: Patience,
    pub(crate) client: HttpClient,
    token: Option<HeaderValue>,
}

/// The client of HTTP, with and without encryption.
type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

impl Peer {
    /// Creates a client. The token is what a file has.
    pub(crate) fn new(
        address: ServerAddress,
        token_file: Option<&Path>,
        patience: Patience,
    ) -> Result<Self, EnvironmentError> {
        Self::of(address, token_file.map(read_token).transpose()?, patience)
    }

    /// Creates a client with a token.
    pub(crate) fn with_token(
        address: ServerAddress,
        token: Option<&str>,
        patience: Patience,
    ) -> Result<Self, EnvironmentError> {
        let token = token.map(header).transpose().map_err(|why| {
            EnvironmentError::new(format!("the key of {address} cannot be used: {why}"))
        })?;
        Self::of(address, token, patience)
    }

    fn of(
        address: ServerAddress,
        token: Option<HeaderValue>,
        patience: Patience,
    ) -> Result<Self, EnvironmentError> {
        if token.is_some() && !address.is_encrypted() && !address.is_local() {
            tracing::warn!("the token goes to {address} unencrypted");
        }
        let client = client(&address, patience.connect)?;
        Ok(Self { address, patience, client, token })
    }

    /// Creates the same client anew, without its connections: they belong to the runtime in which they were opened.
    pub(crate) fn anew(&self) -> Result<Self, EnvironmentError> {
        let client = client(&self.address, self.patience.connect)?;
        let Self { address, patience, token, .. } = self;
        Ok(Self { address: address.clone(), patience: *patience, token: token.clone(), client })
    }

    /// Starts a request, with what shows the server who asks.
    pub(crate) fn request(&self, method: &str, uri: Uri) -> Builder {
        let mut request = hyper::Request::builder().method(method).uri(uri);
        if let Some(token) = &self.token {
            let mut bearer = HeaderValue::try_from([b"Bearer ", token.as_bytes()].concat())
                .expect("a header's value stays one behind a word");
            bearer.set_sensitive(true);
            request = request.header(API_KEY, token.clone()).header(AUTHORIZATION, bearer);
        }
        request
    }
}

fn client(address: &ServerAddress, connect: Duration) -> Result<HttpClient, EnvironmentError> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(connect));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(encryption(address.is_encrypted())?)
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}

/// Returns how connections are encrypted: with the system's certificates, where they are needed.
fn encryption(is_needed: bool) -> Result<ClientConfig, EnvironmentError> {
    let mut roots = RootCertStore::empty();
    if is_needed {
        let found = rustls_native_certs::load_native_certs();
        let (n, _) = roots.add_parsable_certificates(found.certs);
        if n == 0 {
            return Err(EnvironmentError::new(
                "this system has no certificates, and https needs them; install ca-certificates, or set SSL_CERT_FILE",
            ));
        }
    }
    let provider = rustls::crypto::ring::default_provider();
    let config = ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .map_err(|error| EnvironmentError::new("cannot set up encryption").caused_by(error))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn read_token(file: &Path) -> Result<HeaderValue, EnvironmentError> {
    let wrong = |why: &str| {
        EnvironmentError::new(format!("cannot read the token in {}: {why}", file.display()))
    };
    let text = fs::read_to_string(file).map_err(|error| wrong(&error.to_string()))?;
    if text.trim().is_empty() {
        return Err(wrong("the file is empty"));
    }
    header(text.trim()).map_err(wrong)
}

/// Makes a header's value of a token.
fn header(token: &str) -> Result<HeaderValue, &'static str> {
    // The error of a bad header must not repeat the token.
    let value = HeaderValue::from_str(token);
    let mut value = value.map_err(|_| "it has characters that a header cannot have")?;
    value.set_sensitive(true);
    Ok(value)
}

impl fmt::Debug for Peer {
    /// Leaves the token out.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Peer").field("address", &self.address).finish_non_exhaustive()
    }
}
