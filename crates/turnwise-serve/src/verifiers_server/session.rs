//! A client's connection: several requests at a time, told apart by their ids.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio_util::task::AbortOnDropHandle;

use super::episode::VerifiersHost;
use crate::zmtp::{MAX_FRAME, ZmqSocket, greet, message, pong_to, read_message};

/// What the requests of a connection share.
#[derive(Clone)]
struct Client {
    host: Arc<VerifiersHost>,
    /// Episodes that may begin, among all connections.
    room: Arc<Semaphore>,
    out: mpsc::Sender<Vec<u8>>,
    running: Arc<Mutex<HashMap<Vec<u8>, AbortHandle>>>,
}

/// The time for a greeting.
const GREETING: Duration = Duration::from_secs(10);

/// The most answers that wait to be written.
const WAITING: usize = 256;

/// The longest id of a request, in bytes.
const LONGEST_ID: usize = 256;

/// Serves a connection until its client is gone, and ends the episodes that it asked for.
pub(super) async fn serve(stream: TcpStream, host: Arc<VerifiersHost>, room: Arc<Semaphore>) {
    let _ = stream.set_nodelay(true);
    let (mut read, mut write) = stream.into_split();
    let greeted =
        tokio::time::timeout(GREETING, greet(&mut read, &mut write, ZmqSocket::Router)).await;
    if !matches!(greeted, Ok(Ok(()))) {
        tracing::debug!(?greeted, "a client was not greeted");
        return;
    }
    let (out, waiting) = mpsc::channel(WAITING);
    let mut writer = AbortOnDropHandle::new(tokio::spawn(write_all(write, waiting)));
    let client = Client { host, room, out, running: Arc::default() };
    let mut runs = tokio::task::JoinSet::new();
    loop {
        let commanded = |command: &[u8]| {
            // A heartbeat can be missed where the client reads nothing.
            let _ = pong_to(command).map(|pong| client.out.try_send(pong));
        };
        // Half of a message that was read would be lost with its reader.
        let mut reading = std::pin::pin!(read_message(&mut read, commanded));
        let asked = loop {
            tokio::select! {
                asked = &mut reading => break asked,
                _ = &mut writer => break Err(ErrorKind::BrokenPipe.into()),
                Some(_) = runs.join_next() => {}
            }
        };
        let frames = match asked {
            Ok(frames) => frames,
            Err(error) => {
                tracing::debug!(%error, "a client is gone");
                break;
            }
        };
        let Ok([id, method, payload]) = <[Vec<u8>; 3]>::try_from(frames) else { continue };
        if id.len() > LONGEST_ID {
            continue;
        }
        match method.as_slice() {
            b"health" => client.reply(&id, &json!({"success": true, "error": null})).await,
            b"run" => client.start(&mut runs, id, payload),
            b"cancel" => client.cancel(&id, &payload).await,
            method => {
                let method = String::from_utf8_lossy(method).into_owned();
                client.reply(&id, &failed(&format!("unknown method {method:?}"))).await;
            }
        }
    }
}

impl Client {
    /// Starts an episode.
    fn start(&self, runs: &mut tokio::task::JoinSet<()>, id: Vec<u8>, payload: Vec<u8>) {
        let (client, key) = (self.clone(), id.clone());
        let mut running = locked(&self.running);
        if running.contains_key(&id) {
            return;
        }
        let handle = runs.spawn(async move {
            let reply = match client.room.try_acquire() {
                Ok(_room) => match client.host.run(&payload).await {
                    Ok(sent) => {
                        client.send(&key, b"delta", &sent.delta).await;
                        sent.reply
                    }
                    Err(why) => failed(&why),
                },
                Err(_) => failed("too many episodes run; try again later"),
            };
            locked(&client.running).remove(&key);
            client.reply(&key, &reply).await;
        });
        running.insert(id, handle);
    }

    /// Ends an episode of this client; twice does no more than once.
    async fn cancel(&self, id: &[u8], payload: &[u8]) {
        let asked: Option<Value> = rmp_serde::from_slice(payload).ok();
        let run = asked.as_ref().and_then(|asked| asked["request_id"].as_str());
        let handle = run.and_then(|run| locked(&self.running).remove(run.as_bytes()));
        let was_running = handle.is_some();
        if let (Some(handle), Some(run)) = (handle, run) {
            handle.abort();
            self.reply(run.as_bytes(), &failed("Cancelled: rollout aborted")).await;
        }
        let reply = json!({"success": true, "error": null, "cancelled": was_running});
        self.reply(id, &reply).await;
    }

    async fn reply(&self, id: &[u8], value: &Value) {
        self.send(id, b"reply", value).await;
    }

    async fn send(&self, id: &[u8], kind: &[u8], value: &Value) {
        let packed =
            rmp_serde::to_vec(value).ok().filter(|packed| packed.len() as u64 <= MAX_FRAME);
        let packed = packed
            .or_else(|| rmp_serde::to_vec(&failed("the episode is too long to be sent")).ok());
        let bytes = message(&[id, kind, &packed.unwrap_or_default()]);
        // A client that is gone hears nothing.
        let _ = self.out.send(bytes).await;
    }
}

async fn write_all(mut write: OwnedWriteHalf, mut waiting: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = waiting.recv().await {
        if write.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

fn failed(why: &str) -> Value {
    json!({"success": false, "error": why})
}

/// Locks what is valid between any two statements.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
