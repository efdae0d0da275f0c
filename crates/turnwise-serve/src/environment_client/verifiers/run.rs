//! A request for an episode, from its first byte to its reply.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use turnwise_environment::EnvironmentError;

use super::super::fault::{malformed, shown};
use super::client::VerifiersClient;
use super::delta::{PlayedEpisode, Traces};
use crate::key::SessionKey;
use crate::zmtp::{MAX_FRAME, message, ping, pong_to, read_message};

/// An episode that a server plays, on a connection of its own. Dropped before its end, it is cancelled.
#[derive(Debug)]
pub(super) struct RemoteRun(oneshot::Receiver<Ended>);

/// How an episode ends.
type Ended = Result<PlayedEpisode, EnvironmentError>;

/// The pause between two heartbeats.
const BEAT: Duration = Duration::from_secs(10);

/// The heartbeats after which a server of which nothing is heard is lost.
const MISSED: usize = 3;

/// How long the answer to a cancellation is waited for.
const FAREWELL: Duration = Duration::from_secs(1);

/// The most messages that wait to be written.
const WAITING: usize = 16;

impl RemoteRun {
    /// Connects to a server and asks it for an episode, in the current runtime. `request` is the payload of `run`.
    pub(super) async fn start(
        client: &VerifiersClient,
        request: &serde_json::Value,
    ) -> Result<Self, EnvironmentError> {
        let request = rmp_serde::to_vec(request)
            .map_err(|error| EnvironmentError::new("cannot pack the task").caused_by(error))?;
        if request.len() as u64 > MAX_FRAME {
            return Err(EnvironmentError::new("the task is too long to be sent"));
        }
        let (read, write) = client.connect().await?;
        let (ended, outcome) = oneshot::channel();
        let connection = Connection { read, write, client: client.clone() };
        tokio::spawn(connection.play(request, ended));
        Ok(Self(outcome))
    }

    /// Waits for the end of the episode.
    pub(super) async fn ended(&mut self) -> Ended {
        let lost = || EnvironmentError::new("the client of the verifiers server stopped");
        (&mut self.0).await.unwrap_or_else(|_| Err(lost()))
    }
}

/// A connection that plays one episode.
struct Connection<R, W> {
    read: R,
    write: W,
    client: VerifiersClient,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Connection<R, W> {
    /// Asks for an episode, and says how it ends to whoever still waits for it.
    async fn play(self, request: Vec<u8>, mut ended: oneshot::Sender<Ended>) {
        let Self { read, write, client } = self;
        let id = SessionKey::random();
        let id = id.as_str().as_bytes();
        let (out, unsent) = mpsc::channel(WAITING);
        // The channel has room for its first messages.
        let _ = out.try_send(message(&[id, b"run", &request]));
        let heard = AtomicBool::new(false);
        let mut reading = pin!(reply(read, id, &out, &heard, &client));
        let mut writing = pin!(write_all(write, unsent));
        let outcome = tokio::select! {
            outcome = &mut reading => outcome,
            error = &mut writing => Err(client.broke().caused_by(error)),
            () = silence(&out, &heard) => Err(client.broke().caused_by("the server answers no heartbeat")),
            () = ended.closed() => {
                let _ = out.try_send(cancellation(id));
                let farewell = async {
                    tokio::select! {
                        _ = &mut reading => {}
                        _ = &mut writing => {}
                    }
                };
                let _ = tokio::time::timeout(FAREWELL, farewell).await;
                return;
            }
        };
        // An episode that is gone hears nothing.
        let _ = ended.send(outcome);
    }
}

/// Follows an episode up to the reply of its request.
async fn reply(
    mut read: impl AsyncRead + Unpin,
    id: &[u8],
    out: &mpsc::Sender<Vec<u8>>,
    heard: &AtomicBool,
    client: &VerifiersClient,
) -> Ended {
    let mut traces = Traces::default();
    loop {
        let commanded = |command: &[u8]| {
            heard.store(true, Ordering::Relaxed);
            // A heartbeat can be missed where the server reads nothing.
            let _ = pong_to(command).map(|pong| out.try_send(pong));
        };
        let frames = read_message(&mut read, commanded).await;
        let frames = frames.map_err(|error| client.broke().caused_by(error))?;
        heard.store(true, Ordering::Relaxed);
        let [of, kind, payload] = <[Vec<u8>; 3]>::try_from(frames).map_err(|frames| {
            let n = frames.len();
            malformed("run", format!("it has {n} frames; the server has to be of verifiers 0.4"))
        })?;
        match kind.as_slice() {
            // What another request is answered is nobody's here.
            _ if of != id => {}
            b"delta" => traces.apply(&payload)?,
            b"reply" => return traces.finish(&payload),
            kind => {
                let kind = shown(&String::from_utf8_lossy(kind));
                return Err(malformed(
                    "run",
                    format!("it is neither delta nor reply but {kind:?}"),
                ));
            }
        }
    }
}

/// Writes what waits; returns the error that ends the connection.
async fn write_all(
    mut write: impl AsyncWrite + Unpin,
    mut unsent: mpsc::Receiver<Vec<u8>>,
) -> std::io::Error {
    while let Some(bytes) = unsent.recv().await {
        if let Err(error) = write.write_all(&bytes).await {
            return error;
        }
    }
    std::io::ErrorKind::BrokenPipe.into()
}

/// Sends heartbeats, and returns once a server has let several pass without a word.
async fn silence(out: &mpsc::Sender<Vec<u8>>, heard: &AtomicBool) {
    let mut missed = 0;
    while missed < MISSED {
        let _ = out.try_send(ping());
        tokio::time::sleep(BEAT).await;
        missed = if heard.swap(false, Ordering::Relaxed) { 0 } else { missed + 1 };
    }
}

fn cancellation(run: &[u8]) -> Vec<u8> {
    let id = SessionKey::random();
    let request = serde_json::json!({"request_id": String::from_utf8_lossy(run)});
    message(&[id.as_str().as_bytes(), b"cancel", &rmp_serde::to_vec(&request).unwrap_or_default()])
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::DuplexStream;
    use tokio::time::Instant;

    use super::super::options::VerifiersOptions;
    use super::*;

    /// Plays an episode whose server is the other end of the stream.
    fn playing() -> (RemoteRun, DuplexStream) {
        let options = VerifiersOptions {
            address: "tcp://127.0.0.1:5000".to_owned(),
            ..VerifiersOptions::default()
        };
        let client = VerifiersClient::new(&options).unwrap();
        let (own, server) = tokio::io::duplex(1 << 20);
        let (read, write) = tokio::io::split(own);
        let (ended, outcome) = oneshot::channel();
        tokio::spawn(Connection { read, write, client }.play(b"\x80".to_vec(), ended));
        (RemoteRun(outcome), server)
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_answers_no_heartbeat_is_lost() {
        let (mut run, mut server) = playing();
        let before = Instant::now();
        let error = run.ended().await.unwrap_err();
        assert_eq!(before.elapsed(), BEAT * MISSED as u32);
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(cause, "the server answers no heartbeat");
        // It was asked for an episode, and then for its health.
        let pings = std::cell::Cell::new(0);
        let frames = read_message(&mut server, |_| {}).await.unwrap();
        assert_eq!(frames[1..], [b"run".to_vec(), b"\x80".to_vec()]);
        let counted =
            |command: &[u8]| pings.set(pings.get() + usize::from(pong_to(command).is_some()));
        assert!(read_message(&mut server, counted).await.is_err(), "the connection is closed");
        assert_eq!(pings.get(), MISSED);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_answers_heartbeats_may_think_for_long() {
        let (mut run, server) = playing();
        let (mut read, mut write) = tokio::io::split(server);
        let waited = async {
            let id = read_message(&mut read, |_| {}).await.unwrap().remove(0);
            let (out, mut pongs) = mpsc::unbounded_channel();
            let before = Instant::now();
            let mut reading = pin!(read_message(&mut read, |command| {
                let _ = out.send(pong_to(command).unwrap());
            }));
            while before.elapsed() < BEAT * 20 {
                tokio::select! {
                    _ = &mut reading => panic!("nothing else is sent"),
                    pong = pongs.recv() => write.write_all(&pong.unwrap()).await.unwrap(),
                }
            }
            let reply = rmp_serde::to_vec(&json!({"success": false, "error": "late"})).unwrap();
            write.write_all(&message(&[&id, b"reply", &reply])).await.unwrap();
        };
        let (ended, ()) = tokio::join!(run.ended(), waited);
        assert!(ended.unwrap_err().to_string().ends_with(": late"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_episode_that_is_dropped_is_cancelled_and_its_server_may_stay_silent() {
        let (run, mut server) = playing();
        let id = read_message(&mut server, |_| {}).await.unwrap().remove(0);
        drop(run);
        let before = Instant::now();
        let frames = read_message(&mut server, |_| {}).await.unwrap();
        assert_eq!(frames[1], b"cancel");
        let request: serde_json::Value = rmp_serde::from_slice(&frames[2]).unwrap();
        assert_eq!(request["request_id"], json!(String::from_utf8(id).unwrap()));
        assert!(read_message(&mut server, |_| {}).await.is_err(), "the connection is closed");
        assert_eq!(before.elapsed(), FAREWELL);
    }
}
