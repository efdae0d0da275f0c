//! Requests to one server, bounded in time and size.

use std::error::Error;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderValue, RETRY_AFTER};
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
    /// The longest silence of a server.
    silence: Duration,
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
        Ok(Self { client, base, key, silence })
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

    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, ServerFault> {
        let url = format!("{}{path}", self.url());
        let url = Url::parse(&url).map_err(|error| ServerFault::Unreachable(error.to_string()))?;
        let request = self.client.request(method, url);
        let Some(key) = &self.key else { return Ok(request) };
        let mut value = HeaderValue::from_str(&format!("Bearer {}", key.reveal()))
            .map_err(|_| ServerFault::Unreachable("its key is no header".to_owned()))?;
        value.set_sensitive(true);
        Ok(request.header(AUTHORIZATION, value))
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
    let response = response
        .map_err(|_| ServerFault::Unreachable(format!("no answer in {} s", limit.as_secs_f64())))?
        .map_err(|error| lost(&error))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let wait = retry_after(&response);
    let message = match body(response).await {
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
    let bytes = body(response).await?;
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(value),
        // Some control routes answer with a sentence.
        Err(_) => Ok(Value::String(message(&String::from_utf8_lossy(&bytes)))),
    }
}

async fn body(mut response: Response) -> Result<Vec<u8>, ServerFault> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| lost(&error))? {
        if bytes.len() + chunk.len() > LONGEST_ANSWER {
            return Err(ServerFault::Wrong(format!("an answer of over {LONGEST_ANSWER} bytes")));
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
        assert_eq!(message(r#"{"detail":"Not FoundServer"}"#), "Not FoundServer");
        assert_eq!(message(""), "no explanation");
        assert_eq!(message(&"\u{1b}[31m".repeat(1000)).chars().count(), LONGEST_MESSAGE);
    }
}
