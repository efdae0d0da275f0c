//! The server.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;
use turnwise_environment::Suite;
use turnwise_rollout::{Limits, Renderer};

use super::episode::VerifiersHost;
use super::session;
use crate::listener::{BindError, listen};
use crate::zmtp::is_private;

/// The settings of a [`VerifiersServer`].
#[derive(Clone, Debug, PartialEq)]
pub struct VerifiersSettings {
    /// The address to listen at, on this machine or in a private network, because `ZeroMQ` has no authentication. Port 0 takes
    /// a free one.
    pub address: SocketAddr,
    /// The limits of an episode. A request may set the tokens of a turn.
    pub limits: Limits,
    /// The most episodes at a time; a request beyond them is refused.
    pub max_sessions: usize,
    /// The variables of this process in which a client may find the key of its endpoint. A variable that is not listed is
    /// not read: the key goes to wherever the client says.
    pub key_variables: Vec<String>,
}

impl Default for VerifiersSettings {
    /// Listens on this machine alone, at a free port, for 1,024 episodes.
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            limits: Limits::default(),
            max_sessions: 1_024,
            key_variables: Vec::new(),
        }
    }
}

/// An environment server of verifiers (protocol v1), which prime-rl's client speaks to; it closes when dropped.
///
/// A client asks for a whole episode of a task (`task_data.idx`, and `task_data.split`) and names the endpoint of a model. The
/// server plays it there by token ids, and answers with the tokens, what of them was sampled, and how likely it was.
pub struct VerifiersServer {
    address: SocketAddr,
    _server: AbortOnDropHandle<()>,
}

impl VerifiersServer {
    /// Listens, and serves requests in the current runtime. The renderer is that of the endpoint's model.
    ///
    /// # Errors
    /// If nothing can listen at the address, or it is of a public network.
    pub async fn bind(
        settings: VerifiersSettings,
        suite: Suite,
        renderer: Arc<dyn Renderer>,
    ) -> Result<Self, BindError> {
        if !is_private(settings.address.ip()) {
            let why = "clients are not authenticated, so that the address has to be of this machine or of a private network";
            return Err(BindError::new(settings.address, io::Error::other(why)));
        }
        let (listener, address) = listen(settings.address).await?;
        let room = Arc::new(Semaphore::new(settings.max_sessions));
        let host = Arc::new(VerifiersHost { suite, renderer, settings });
        let server = AbortOnDropHandle::new(tokio::spawn(accept(listener, host, room)));
        Ok(Self { address, _server: server })
    }

    /// Returns the address as clients of `ZeroMQ` take it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("tcp://{}", self.address)
    }
}

impl fmt::Debug for VerifiersServer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("VerifiersServer")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// The most connections: a broker needs one.
const MAX_CONNECTIONS: usize = 256;

async fn accept(listener: TcpListener, host: Arc<VerifiersHost>, room: Arc<Semaphore>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(session::serve(stream, host.clone(), room.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}
