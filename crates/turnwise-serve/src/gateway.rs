//! The server.

use std::net::{Ipv4Addr, SocketAddr};

use tokio_util::task::AbortOnDropHandle;

use crate::listener::{BindError, ConnectionLimits, accept, listen};
use crate::routes::{Shared, router};
use crate::session::{OpenSession, SessionTable};

/// The settings of a [`Gateway`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewaySettings {
    /// The address to listen at. Port 0 takes a free one. Off loopback, the keys of sessions are all that keeps strangers
    /// out, and they travel unencrypted.
    pub address: SocketAddr,
    /// The model's name in answers; requests may ask for any.
    pub model: String,
    /// The most sessions at a time.
    pub max_sessions: usize,
    /// The most connections at a time; more wait.
    pub max_connections: usize,
    /// The largest request, in bytes.
    pub max_body_bytes: usize,
    /// The seconds until a connection is closed that sends no request.
    pub idle_timeout_s: u64,
}

impl Default for GatewaySettings {
    /// Listens on this machine alone, at a free port.
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            model: "turnwise".to_owned(),
            max_sessions: 1_024,
            max_connections: 4_096,
            max_body_bytes: 16 << 20,
            idle_timeout_s: 75,
        }
    }
}

/// A chat endpoint, whose sessions are episodes; it closes when dropped.
///
/// ```
/// use turnwise_serve::{Gateway, GatewaySettings};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let gateway = Gateway::bind(GatewaySettings::default()).await?;
/// assert!(gateway.url().starts_with("http://127.0.0.1:"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Gateway {
    sessions: SessionTable,
    address: SocketAddr,
    max_sessions: usize,
    _server: AbortOnDropHandle<()>,
}

impl Gateway {
    /// Listens, and serves requests in the current runtime.
    ///
    /// # Errors
    /// If nothing can listen at the address.
    pub async fn bind(settings: GatewaySettings) -> Result<Self, BindError> {
        let (listener, address) = listen(settings.address).await?;
        let sessions = SessionTable::default();
        let shared = Shared { sessions: sessions.clone(), address, model: settings.model.clone() };
        let limits = ConnectionLimits {
            max_connections: settings.max_connections,
            idle_timeout_s: settings.idle_timeout_s,
        };
        let server = accept(listener, router(shared, settings.max_body_bytes), limits);
        Ok(Self {
            sessions,
            address,
            max_sessions: settings.max_sessions,
            _server: AbortOnDropHandle::new(tokio::spawn(server)),
        })
    }

    /// Returns the URL of the server, without a slash at its end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn sessions(&self) -> &SessionTable {
        &self.sessions
    }

    pub(crate) fn open(&self) -> Option<OpenSession> {
        self.sessions.open(self.max_sessions)
    }
}
