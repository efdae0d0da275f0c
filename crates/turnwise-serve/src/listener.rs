//! Connections: accepted, counted, and closed when idle.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// The limits of a server's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionLimits {
    /// The most at a time; more wait.
    pub(crate) max_connections: usize,
    /// The seconds until one is closed that sends no request.
    pub(crate) idle_timeout_s: u64,
}

/// Listens at an address, and returns the one that was taken.
pub(crate) async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), BindError> {
    let failed = |why| BindError { address, why };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let taken = listener.local_addr().map_err(failed)?;
    Ok((listener, taken))
}

/// Accepts connections for ever.
pub(crate) async fn accept(listener: TcpListener, router: Router, limits: ConnectionLimits) {
    let connections = Arc::new(Semaphore::new(limits.max_connections));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many open files, for one: a pause, and the next.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // An answer in several writes would wait for the client's acknowledgement of the first.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(limits.idle_timeout_s))
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection broke");
            }
            drop(permit);
        });
    }
}

/// The reason why a server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {address}: {why}")]
pub struct BindError {
    address: SocketAddr,
    why: std::io::Error,
}

impl BindError {
    pub(crate) fn new(address: SocketAddr, why: std::io::Error) -> Self {
        Self { address, why }
    }
}
