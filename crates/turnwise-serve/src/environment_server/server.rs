//! The server.

use std::net::SocketAddr;

use tokio_util::task::AbortOnDropHandle;
use turnwise_environment::Suite;

use super::settings::{Protocol, ServerSettings};
use super::{openenv, ors};
use crate::key::SessionKey;
use crate::listener::{BindError, ConnectionLimits, accept, listen};

/// An environment behind the protocol of another trainer; it closes when dropped.
///
/// ```
/// # use turnwise_environment::{Environment, EnvironmentError, Observation, Step, Suite, async_trait, Action};
/// use turnwise_serve::{EnvironmentServer, Protocol, ServerSettings};
///
/// # #[derive(Clone, Debug)]
/// # struct Sum(u32);
/// # #[async_trait]
/// # impl Environment for Sum {
/// #     async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> { Ok("2 + 2?".into()) }
/// #     async fn step(&mut self, _action: Action) -> Result<Step, EnvironmentError> { Ok(Step::terminated(1.0)) }
/// # }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let suite = Suite::divided("sums", (0..20).map(Sum).collect::<Vec<_>>(), 0.25);
/// let server = EnvironmentServer::bind(ServerSettings::new(Protocol::Ors), suite).await?;
/// assert!(server.url().starts_with("http://127.0.0.1:"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct EnvironmentServer {
    address: SocketAddr,
    token: Option<String>,
    _server: AbortOnDropHandle<()>,
}

impl EnvironmentServer {
    /// Listens, and serves requests in the current runtime.
    ///
    /// # Errors
    /// If nothing can listen at the address.
    pub async fn bind(settings: ServerSettings, suite: Suite) -> Result<Self, BindError> {
        let (listener, address) = listen(settings.address).await?;
        let needed = !address.ip().is_loopback();
        let token = settings.token.clone();
        let token = token.or_else(|| needed.then(|| SessionKey::random().as_str().to_owned()));
        let limits = ConnectionLimits {
            max_connections: 4 * settings.max_sessions,
            idle_timeout_s: settings.session_timeout_s,
        };
        let settings = ServerSettings { token: token.clone(), address, ..settings };
        let router = match settings.protocol {
            Protocol::Ors => ors::router(suite, settings),
            Protocol::OpenEnv => openenv::router(suite, settings),
        };
        let server = AbortOnDropHandle::new(tokio::spawn(accept(listener, router, limits)));
        Ok(Self { address, token, _server: server })
    }

    /// Returns the URL of the server, without a slash at its end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns what clients have to send as their API key, if anything.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }
}
