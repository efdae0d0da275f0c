//! A connection, which is an environment at the server.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::http::StatusCode;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};
use turnwise_environment::EnvironmentError;

use super::super::fault::malformed;
use super::super::http::MAX_BYTES;
use super::super::peer::Peer;
use super::frames::Frame;

/// A connection, held by a task of its own: a server's pings are answered while the model thinks. It is closed when
/// dropped.
#[derive(Debug)]
pub(super) struct EnvSocket {
    exchanges: mpsc::Sender<Exchange>,
    patience: Duration,
}

/// A request and the place of its answer.
struct Exchange {
    frame: Value,
    reply: oneshot::Sender<Result<Frame, EnvironmentError>>,
}

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// The reason why no connection was opened.
#[derive(Debug)]
pub(super) enum NotOpened {
    /// The server may open one later.
    Later(EnvironmentError),
    Never(EnvironmentError),
}

impl EnvSocket {
    /// Opens a connection.
    pub(super) async fn open(peer: &Peer) -> Result<Self, NotOpened> {
        let opened = timeout(peer.patience.connect, upgraded(peer)).await;
        let socket = opened.map_err(|_| {
            let seconds = peer.patience.connect.as_secs_f64();
            let what = format!("the server opened no WebSocket in {seconds} s");
            NotOpened::Later(EnvironmentError::new(what))
        })??;
        let (exchanges, asked) = mpsc::channel(1);
        tokio::spawn(hold(socket, asked));
        Ok(Self { exchanges, patience: peer.patience.answer })
    }

    /// Sends a message and returns the answer.
    pub(super) async fn ask(&self, kind: &str, data: Value) -> Result<Frame, EnvironmentError> {
        let (reply, answer) = oneshot::channel();
        let exchange = Exchange { frame: json!({"type": kind, "data": data}), reply };
        let closed = || EnvironmentError::new(format!("the connection closed before {kind}"));
        let asked = async {
            self.exchanges.send(exchange).await.map_err(|_| closed())?;
            answer.await.map_err(|_| closed())?
        };
        let seconds = self.patience.as_secs_f64();
        timeout(self.patience, asked).await.unwrap_or_else(|_| {
            Err(EnvironmentError::new(format!(
                "the server did not answer {kind} in {seconds} s; `timeout_s` sets the time"
            )))
        })
    }
}

async fn upgraded(peer: &Peer) -> Result<Socket, NotOpened> {
    let key = generate_key();
    let uri = peer.address.route("/ws").map_err(NotOpened::Never)?;
    let request = peer
        .request("GET", uri)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, &key)
        .body(Full::<Bytes>::default());
    let request = request.map_err(|error| {
        NotOpened::Never(EnvironmentError::new("cannot make a request").caused_by(error))
    })?;
    let response = peer.client.request(request).await.map_err(|error| {
        let what = format!("cannot reach {}", peer.address);
        NotOpened::Later(EnvironmentError::new(what).caused_by(error))
    })?;
    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let error = EnvironmentError::new(format!("the server answered /ws with {status}"));
        let is_passing = matches!(status.as_u16(), 429 | 502 | 503 | 504);
        return Err(if is_passing { NotOpened::Later(error) } else { NotOpened::Never(error) });
    }
    let accepted = response.headers().get(SEC_WEBSOCKET_ACCEPT);
    if accepted.is_none_or(|accepted| accepted != derive_accept_key(key.as_bytes()).as_str()) {
        return Err(NotOpened::Never(malformed("/ws", "it accepts another connection")));
    }
    let stream = hyper::upgrade::on(response).await.map_err(|error| {
        NotOpened::Later(EnvironmentError::new("the connection broke").caused_by(error))
    })?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_BYTES))
        .max_frame_size(Some(MAX_BYTES));
    Ok(WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Client, Some(config)).await)
}

/// Holds a connection until nobody asks any more, or an answer is not waited for.
async fn hold(mut socket: Socket, mut asked: mpsc::Receiver<Exchange>) {
    // What came without a question: a refusal, or the end.
    let mut early: Option<Result<Frame, EnvironmentError>> = None;
    loop {
        tokio::select! {
            biased;
            exchange = asked.recv() => {
                let Some(Exchange { frame, mut reply }) = exchange else { break };
                let answer = if let Some(early) = early.take() {
                    early
                } else {
                    tokio::select! {
                        answer = exchanged(&mut socket, &frame) => answer,
                        // Who does not wait any more would take this answer for that of the next question.
                        () = reply.closed() => return,
                    }
                };
                let is_over = answer.is_err();
                let _ = reply.send(answer);
                if is_over {
                    break;
                }
            }
            frame = next(&mut socket), if early.is_none() => early = Some(unasked(frame)),
        }
    }
    close(socket).await;
}

async fn exchanged(socket: &mut Socket, frame: &Value) -> Result<Frame, EnvironmentError> {
    let sent = socket.send(Message::text(frame.to_string())).await;
    // A server that refuses says why before it closes, and the sending may fail for it.
    match next(socket).await {
        Ok(frame) => Ok(frame),
        Err(error) => Err(match sent {
            Err(cause) => EnvironmentError::new("the connection broke").caused_by(cause),
            Ok(()) => error,
        }),
    }
}

/// Reads the next frame; pings are answered meanwhile.
async fn next(socket: &mut Socket) -> Result<Frame, EnvironmentError> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => return Frame::read(text.as_bytes()),
            Some(Ok(Message::Binary(bytes))) => return Frame::read(&bytes),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Ok(Message::Close(_)) | Err(SocketError::ConnectionClosed)) | None => {
                return Err(EnvironmentError::new("the server closed the connection"));
            }
            Some(Err(error)) => {
                return Err(EnvironmentError::new("the connection broke").caused_by(error));
            }
        }
    }
}

/// Judges what came without a question: only a refusal may.
fn unasked(frame: Result<Frame, EnvironmentError>) -> Result<Frame, EnvironmentError> {
    match frame {
        Ok(frame @ Frame::Refused(_)) => Ok(frame),
        Ok(_) => Err(EnvironmentError::new("the server sent an answer that nobody asked for")),
        Err(error) => Err(error),
    }
}

/// Says goodbye, which a server has a moment to hear.
async fn close(mut socket: Socket) {
    let goodbye = async {
        let _ = socket.send(Message::text(json!({"type": "close"}).to_string())).await;
        let _ = socket.close(None).await;
    };
    let _ = timeout(Duration::from_secs(2), goodbye).await;
}
