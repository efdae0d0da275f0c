//! Requests to one server, bounded in time and size.

use std::error::Error;
use std::time::Duration;

use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER,
};
use reqwest::redirect::Policy as Redirects;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

use crate::fault::{RemoteError, ServerFault};
use crate::secret::Secret;

/// The longest answer that is not a stream: a list of models, or the log-probabilities of a probe.
const LONGEST_ANSWER: usize = 16 << 20;
/// The longest event of a stream.
const LONGEST_EVENT: usize = 1 << 20;
/// The longest text of a server in an error.
const LONGEST_MESSAGE: usize = 300;
/// The longest wait that a server may ask for.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// One server.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    client: Client,
    base: Url,
    key: Option<Secret>,
    /// The header that has the key alone; `Authorization: Bearer` if there is none.
    key_header: Option<HeaderName>,
    /// The longest silence of a server.
    silence: Duration,
}

/// A request whose body need not be JSON.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing<'a> {
    pub(crate) path: &'a str,
    pub(crate) content_type: &'a str,
    pub(crate) accept: &'a str,
    /// The key under which the server recognises a repetition.
    pub(crate) idempotency_key: &'a str,
    pub(crate) body: &'a [u8],
}

/// An answer that need not be JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Incoming {
    pub(crate) content_type: String,
    pub(crate) bytes: Vec<u8>,
}

impl Http {
    /// Prepares requests to a server; `silence` is the longest time without a byte of its answer.
    pub(crate) fn new(
        url: &str,
        key: Option<Secret>,
        silence: Duration,
    ) -> Result<Self, RemoteError> {
        let base = address(url).map_err(|reason| RemoteError::BadUrl {
            // A password in a URL must not reach a log.
            url: url.rsplit_once('@').map_or(url, |(_, rest)| rest).to_owned(),
            reason,
        })?;
        let encryption = encryption(base.scheme() == "https").map_err(RemoteError::Client)?;
        let mut client = Client::builder()
            .tls_backend_preconfigured(encryption)
            // A server that redirects could send the key elsewhere.
            .redirect(Redirects::none())
            .connect_timeout(CONNECT)
            .read_timeout(silence);
        if is_loopback(&base) {
            client = client.no_proxy();
        }
        let client = client.build().map_err(|error| RemoteError::Client(causes(&error)))?;
        Ok(Self { client, base, key, key_header: None, silence })
    }

    /// Sends the key in a header of its own.
    pub(crate) fn with_key_header(self, name: &'static str) -> Self {
        Self { key_header: Some(HeaderName::from_static(name)), ..self }
    }

    /// Returns the address without what is secret.
    pub(crate) fn url(&self) -> String {
        self.base.as_str().trim_end_matches('/').to_owned()
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, ServerFault> {
        let request = self.request(Method::GET, path)?;
        json(send(request, self.silence).await?).await
    }

    /// Posts a body; the answer has to arrive within `limit`. An empty answer is null.
    pub(crate) async fn post(
        &self,
        path: &str,
        body: &Value,
        limit: Duration,
    ) -> Result<Value, ServerFault> {
        let request = self.request(Method::POST, path)?.json(body).timeout(limit);
        json(send(request, limit).await?).await
    }

    /// Posts a body whose answer is a stream of events.
    pub(crate) async fn stream(&self, path: &str, body: &Value) -> Result<Events, ServerFault> {
        let request = self.request(Method::POST, path)?.json(body);
        let response = send(request, self.silence).await?;
        Ok(Events { response, buffer: Vec::new() })
    }

    /// Posts bytes. Returns `None` if the answer does not begin within `limit`.
    pub(crate) async fn exchange(
        &self,
        outgoing: Outgoing<'_>,
        limit: Duration,
    ) -> Result<Option<Incoming>, ServerFault> {
        let request = self
            .request(Method::POST, outgoing.path)?
            .header(CONTENT_TYPE, outgoing.content_type)
            .header(ACCEPT, outgoing.accept)
            .header("x-idempotency-key", outgoing.idempotency_key)
            .body(outgoing.body.to_vec());
        let Ok(response) = tokio::time::timeout(limit, request.send()).await else {
            return Ok(None);
        };
        let response = succeeded(response.map_err(|error| lost(&error))?).await?;
        let content_type = response.headers().get(CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default().to_owned();
        let bytes = body(response, LONGEST_ANSWER).await?;
        Ok(Some(Incoming { content_type, bytes }))
    }

    /// Deletes what is at a path.
    pub(crate) async fn delete(&self, path: &str) -> Result<(), ServerFault> {
        send(self.request(Method::DELETE, path)?, self.silence).await.map(drop)
    }

    /// Reads a file of at most `longest` bytes, and follows one redirection; another server does not get the key.
    pub(crate) async fn download(
        &self,
        path: &str,
        longest: usize,
    ) -> Result<Vec<u8>, ServerFault> {
        let request = self.request(Method::GET, path)?;
        let response = tokio::time::timeout(self.silence, request.send()).await;
        let response = response.map_err(|_| silent(self.silence))?.map_err(|error| lost(&error))?;
        if !response.status().is_redirection() {
            return body(succeeded(response).await?, longest).await;
        }
        let wrong = || ServerFault::Wrong("a redirection without an address".to_owned());
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let url = response.url().join(location.ok_or_else(wrong)?).map_err(|_| wrong())?;
        let request = if url.origin() == self.base.origin() {
            self.with_key(self.client.get(url))?
        } else if url.scheme() == "https" || url.scheme() == self.base.scheme() {
            self.client.get(url)
        } else {
            return Err(ServerFault::Wrong(
                "a redirection to an address without encryption".to_owned(),
            ));
        };
        body(send(request, self.silence).await?, longest).await
    }

    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, ServerFault> {
        let url = format!("{}{path}", self.url());
        let url = Url::parse(&url).map_err(|error| ServerFault::Unreachable(error.to_string()))?;
        self.with_key(self.client.request(method, url))
    }

    fn with_key(&self, request: RequestBuilder) -> Result<RequestBuilder, ServerFault> {
        let Some(key) = &self.key else { return Ok(request) };
        let (name, value) = match &self.key_header {
            Some(name) => (name.clone(), key.reveal().to_owned()),
            None => (AUTHORIZATION, format!("Bearer {}", key.reveal())),
        };
        let mut value = HeaderValue::from_str(&value)
            .map_err(|_| ServerFault::Unreachable("its key is no header".to_owned()))?;
        value.set_sensitive(true);
        Ok(request.header(name, value))
    }
}

/// Returns how connections are encrypted: with the system's certificates, where they are needed.
fn encryption(is_needed: bool) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    if is_needed {
        let (n, _) =
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if n == 0 {
            return Err("this system has no certificates, and https needs them; install ca-certificates, or set SSL_CERT_FILE".to_owned());
        }
    }
    let provider = rustls::crypto::ring::default_provider();
    let config = ClientConfig::builder_with_provider(provider.into());
    let config = config.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// The events of a stream, as `text/event-stream` has them.
#[derive(Debug)]
pub(crate) struct Events {
    response: Response,
    /// Bytes that arrived after the last event.
    buffer: Vec<u8>,
}

impl Events {
    /// Returns the data of the next event; `None` at the end of the stream. Can be cancelled: no event is lost.
    pub(crate) async fn next(&mut self) -> Result<Option<String>, ServerFault> {
        loop {
            if let Some(line) = self.line()? {
                if let Some(data) = line.strip_prefix("data:") {
                    return Ok(Some(data.trim().to_owned()));
                }
                continue;
            }
            match self.response.chunk().await.map_err(|error| lost(&error))? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }

    /// Takes the next whole line from the buffer.
    fn line(&mut self) -> Result<Option<String>, ServerFault> {
        let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') else {
            if self.buffer.len() > LONGEST_EVENT {
                return Err(ServerFault::Wrong(format!("an event of over {LONGEST_EVENT} bytes")));
            }
            return Ok(None);
        };
        let line: Vec<u8> = self.buffer.drain(..=end).collect();
        let line = String::from_utf8(line)
            .map_err(|_| ServerFault::Wrong("an event that is no UTF-8".to_owned()))?;
        Ok(Some(line.trim_end().to_owned()))
    }
}

/// Sends a request, and reads what a status other than success says. The head of the answer has to arrive within `limit`.
async fn send(request: RequestBuilder, limit: Duration) -> Result<Response, ServerFault> {
    let response = tokio::time::timeout(limit, request.send()).await;
    succeeded(response.map_err(|_| silent(limit))?.map_err(|error| lost(&error))?).await
}

/// Returns the answer if its status is success, and otherwise what the server says.
async fn succeeded(response: Response) -> Result<Response, ServerFault> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let wait = retry_after(&response);
    let message = match body(response, LONGEST_ANSWER).await {
        Ok(bytes) => message(&String::from_utf8_lossy(&bytes)),
        Err(fault) => fault.to_string(),
    };
    let code = status.as_u16();
    Err(match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            ServerFault::Busy { wait, message }
        }
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => ServerFault::Unreachable(message),
        _ if status.is_client_error() => ServerFault::Refused { status: code, message },
        _ => ServerFault::Broke(format!("status {code}: {message}")),
    })
}

async fn json(response: Response) -> Result<Value, ServerFault> {
    let bytes = body(response, LONGEST_ANSWER).await?;
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(value),
        // Some control routes answer with a sentence.
        Err(_) => Ok(Value::String(message(&String::from_utf8_lossy(&bytes)))),
    }
}

async fn body(mut response: Response, longest: usize) -> Result<Vec<u8>, ServerFault> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| lost(&error))? {
        if bytes.len() + chunk.len() > longest {
            return Err(ServerFault::Wrong(format!("an answer of over {longest} bytes")));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Returns the wait in seconds that a server asks for, within a bound. Dates are not read.
fn retry_after(response: &Response) -> Option<Duration> {
    let value = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    let seconds: f64 = value.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok().map(|wait| wait.min(LONGEST_WAIT))
}

/// Returns the sentence in a server's error, shortened and on one line.
pub(crate) fn message(text: &str) -> String {
    let value: Option<Value> = serde_json::from_str(text).ok();
    let found = value.as_ref().and_then(|value| {
        ["/error/message", "/error", "/detail", "/message"]
            .iter()
            .find_map(|path| value.pointer(path)?.as_str())
    });
    let words = found.unwrap_or(text).split_whitespace().collect::<Vec<_>>().join(" ");
    let is_plain = |character: &char| !character.is_control();
    let short: String = words.chars().filter(is_plain).take(LONGEST_MESSAGE).collect();
    if short.is_empty() { "no explanation".to_owned() } else { short }
}

fn silent(limit: Duration) -> ServerFault {
    ServerFault::Unreachable(format!("no answer in {} s", limit.as_secs_f64()))
}

fn lost(error: &reqwest::Error) -> ServerFault {
    ServerFault::Unreachable(causes(error))
}

/// Returns an error's innermost cause, which says most: `connection refused` rather than `error sending request`.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    message(&error.to_string())
}

fn address(url: &str) -> Result<Url, String> {
    let parsed = Url::parse(url).map_err(|error| error.to_string())?;
    if !matches!(parsed.scheme(), "http" | "https") || parsed.host().is_none() {
        return Err("it has to begin with http:// or https://".to_owned());
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err("a key belongs into a file, which `key_file` names".to_owned());
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err("it has more than a host, a port and a path".to_owned());
    }
    Ok(parsed)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_without_secrets() {
        assert!(address("http://127.0.0.1:8000").is_ok());
        assert!(address("https://engines.example/one").is_ok());
        for wrong in ["127.0.0.1:8000", "ftp://host", "http://user:word@host", "http://host?a=1"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
        let silence = Duration::from_secs(1);
        let error = Http::new("http://user:word@host", None, silence).unwrap_err();
        assert!(!error.to_string().contains("word"), "{error}");
    }

    #[test]
    fn a_servers_error_is_one_short_line() {
        assert_eq!(
            message(r#"{"error":{"message":"no such\n model","code":404}}"#),
            "no such model"
        );
        assert_eq!(message(r#"{"detail":"Not Found"}"#), "Not Found");
        assert_eq!(message(""), "no explanation");
        assert_eq!(message(&"\u{1b}[31m".repeat(1000)).chars().count(), LONGEST_MESSAGE);
    }
}
