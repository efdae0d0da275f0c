//! A server of verifiers: how it is reached.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use rmp_serde::from_slice;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use turnwise_environment::EnvironmentError;

use super::super::fault::{malformed, shown};
use super::super::patience::{BackOff, Patience};
use super::super::rewards::reward_range;
use super::delta::SentReply;
use super::options::VerifiersOptions;
use crate::key::SessionKey;
use crate::zmtp::{ZmqSocket, greet, is_private, message, read_message};

/// A server of verifiers, as its clients see it; a handle.
#[derive(Clone, Debug)]
pub struct VerifiersClient(Arc<Reached>);

#[derive(Debug)]
struct Reached {
    address: TcpAddress,
    patience: Patience,
    reward_range: RangeInclusive<f64>,
}

/// An address as clients of `ZeroMQ` take it: `tcp://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TcpAddress {
    host: String,
    port: u16,
}

/// The halves of a connection whose peer has greeted.
pub(super) type Greeted = (OwnedReadHalf, OwnedWriteHalf);

impl VerifiersClient {
    /// Reads the address and the deadlines; asks the server for nothing.
    ///
    /// # Errors
    /// If the options have no address that a client can use, or a number that is out of its range.
    pub fn new(options: &VerifiersOptions) -> Result<Self, EnvironmentError> {
        let connect_s = options.connect_timeout_s;
        let patience = Patience::read(connect_s, connect_s, options.ready_timeout_s)?;
        let reward_range = reward_range(options.reward_min, options.reward_max)?;
        let address = TcpAddress::read(&options.address)?;
        Ok(Self(Arc::new(Reached { address, patience, reward_range })))
    }

    pub(super) fn reward_range(&self) -> RangeInclusive<f64> {
        self.0.reward_range.clone()
    }

    /// Returns the address, for people.
    pub(super) fn address(&self) -> String {
        let TcpAddress { host, port } = &self.0.address;
        format!("tcp://{host}:{port}")
    }

    /// Connects, and tries again while the server starts.
    pub(super) async fn connect(&self) -> Result<Greeted, EnvironmentError> {
        self.patiently(|| self.connect_once()).await
    }

    /// Waits until the server says that it is well.
    pub(super) async fn wait_until_healthy(&self) -> Result<(), EnvironmentError> {
        self.patiently(|| self.ask_health()).await
    }

    async fn patiently<T, F: Future<Output = Result<T, EnvironmentError>>>(
        &self,
        attempt: impl Fn() -> F,
    ) -> Result<T, EnvironmentError> {
        let ready = self.0.patience.ready;
        let mut back_off = BackOff::new(ready);
        loop {
            let failure = match attempt().await {
                Ok(reached) => return Ok(reached),
                Err(failure) => failure,
            };
            let Some(pause) = back_off.pause(None) else {
                let (address, seconds) = (self.address(), ready.as_secs_f64());
                return Err(EnvironmentError::new(format!(
                    "the verifiers server at {address} was not ready after {seconds} s; start it, or set `address` to where it is"
                ))
                .caused_by(failure));
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn connect_once(&self) -> Result<Greeted, EnvironmentError> {
        let connecting = async {
            let mut stream = self.0.address.connect().await?;
            // A message in several writes would wait for the server's acknowledgement of the first.
            stream.set_nodelay(true)?;
            let (mut read, mut write) = stream.split();
            greet(&mut read, &mut write, ZmqSocket::Dealer).await?;
            Ok::<_, std::io::Error>(stream.into_split())
        };
        let failed = || EnvironmentError::new(format!("cannot connect to {}", self.address()));
        match tokio::time::timeout(self.0.patience.connect, connecting).await {
            Ok(connected) => connected.map_err(|error| failed().caused_by(error)),
            Err(_) => Err(failed().caused_by("it did not answer in time")),
        }
    }

    async fn ask_health(&self) -> Result<(), EnvironmentError> {
        let (mut read, mut write) = self.connect_once().await?;
        let asking = async {
            let id = SessionKey::random();
            let id = id.as_str().as_bytes();
            let nothing = rmp_serde::to_vec(&json!({})).unwrap_or_default();
            let broken = |error| self.broke().caused_by(error);
            write.write_all(&message(&[id, b"health", &nothing])).await.map_err(broken)?;
            loop {
                // A heartbeat that is not answered within a request as short as this one loses nothing.
                let frames = read_message(&mut read, |_| {}).await.map_err(broken)?;
                if let [of, kind, payload] = frames.as_slice()
                    && of == id
                    && kind == b"reply"
                {
                    let reply: SentReply =
                        from_slice(payload).map_err(|error| malformed("health", error))?;
                    return match reply.failure() {
                        None => Ok(()),
                        Some(why) => Err(EnvironmentError::new(format!(
                            "the server says of its health: {}",
                            shown(&why)
                        ))),
                    };
                }
            }
        };
        let silent = || {
            EnvironmentError::new(
                "the server did not answer `health`; it has to speak the protocol of verifiers 0.4",
            )
        };
        tokio::time::timeout(self.0.patience.answer, asking).await.unwrap_or_else(|_| Err(silent()))
    }

    /// Creates the error for a connection that ends where it must not.
    pub(super) fn broke(&self) -> EnvironmentError {
        EnvironmentError::new(format!(
            "the connection to the verifiers server at {} broke",
            self.address()
        ))
    }
}

impl TcpAddress {
    fn read(text: &str) -> Result<Self, EnvironmentError> {
        let wrong = |why: &str| {
            EnvironmentError::new(format!(
                "`address` is {text:?}, which {why}; write it as in tcp://127.0.0.1:5000"
            ))
        };
        let place = text
            .trim()
            .strip_prefix("tcp://")
            .ok_or_else(|| wrong("does not begin with tcp://"))?;
        let (host, port) = place.rsplit_once(':').ok_or_else(|| wrong("has no port"))?;
        let port = port.parse().ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| wrong("has a port that is none"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || host == "*" || host.contains(['/', '@']) {
            return Err(wrong("names no host"));
        }
        if host.parse::<IpAddr>().is_ok_and(|address| !is_private(address)) {
            return Err(wrong(
                "is neither of this machine nor of a private network, and the protocol has no authentication",
            ));
        }
        Ok(Self { host: host.to_owned(), port })
    }

    /// Connects to the first address of the host that strangers cannot reach.
    async fn connect(&self) -> std::io::Result<TcpStream> {
        let mut addresses = tokio::net::lookup_host((self.host.as_str(), self.port)).await?;
        let address = addresses.find(|address| is_private(address.ip())).ok_or_else(|| {
            std::io::Error::other("the host is neither this machine nor in a private network")
        })?;
        TcpStream::connect(address).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port_that_strangers_cannot_reach() {
        for (text, host) in [
            ("tcp://127.0.0.1:5000", "127.0.0.1"),
            ("tcp://localhost:5000", "localhost"),
            (" tcp://[::1]:5000", "::1"),
            ("tcp://10.0.0.7:5000", "10.0.0.7"),
        ] {
            let address = TcpAddress::read(text).unwrap();
            assert_eq!((address.host.as_str(), address.port), (host, 5000), "{text}");
        }
        for text in [
            "127.0.0.1:5000",
            "http://127.0.0.1:5000",
            "tcp://127.0.0.1",
            "tcp://127.0.0.1:0",
            "tcp://127.0.0.1:65536",
            "tcp://*:5000",
            "tcp://:5000",
            "tcp://me:secret@localhost:5000",
            "tcp://0.0.0.0:5000",
            "tcp://8.8.8.8:5000",
        ] {
            let error = TcpAddress::read(text).unwrap_err().to_string();
            assert!(error.contains("write it as in tcp://127.0.0.1:5000"), "{error}");
        }
    }
}
