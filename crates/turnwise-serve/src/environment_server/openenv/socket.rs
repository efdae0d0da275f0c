//! An episode on a WebSocket: strictly a request and its reply.

use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use serde_json::{Map, Value, json};

use super::super::sessions::Slot;
use super::fault::{EpisodeFault, FaultCode};
use super::hosted_games::HostedGames;
use super::json_rpc::{self, RpcRequest};
use super::play::{Attachment, Play};
use crate::key::SessionKey;

/// Serves a connection until the client closes it, or is silent for too long.
pub(super) async fn serve(mut socket: WebSocket, hosted: HostedGames, named: Option<String>) {
    let (key, slot) = match attach(&hosted, named.as_deref()).await {
        Ok(attached) => attached,
        Err(fault) => {
            let _ = send(&mut socket, &fault.frame()).await;
            let _ = socket.send(Message::Close(None)).await;
            return;
        }
    };
    let silence = Duration::from_secs(hosted.game.settings.session_timeout_s);
    while let Ok(Some(Ok(message))) = tokio::time::timeout(silence, socket.recv()).await {
        let text = match message {
            Message::Text(text) => text.to_string(),
            Message::Binary(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => break,
        };
        let reply = match read(&text) {
            Ok((kind, _)) if kind == "close" => {
                let _ = socket.send(Message::Close(None)).await;
                break;
            }
            Ok((kind, data)) => {
                let mut held = slot.lock().await;
                let play = held.get_or_insert_with(|| Play::new(hosted.game.clone()));
                reply(play, &kind, &data).await
            }
            Err(fault) => Err(fault),
        };
        let frame = reply.unwrap_or_else(|fault| fault.frame());
        if send(&mut socket, &frame).await.is_err() {
            break;
        }
    }
    detach(&hosted, &key, &slot, named.is_none()).await;
}

/// Takes hold of a session, which one connection at a time may have.
async fn attach(
    hosted: &HostedGames,
    named: Option<&str>,
) -> Result<(SessionKey, Slot<Play>), EpisodeFault> {
    let (key, slot) = hosted.slot(named)?;
    let mut held = slot.lock().await;
    let play = held.get_or_insert_with(|| Play::new(hosted.game.clone()));
    if play.attachment != Attachment::Free {
        let message = format!("Session {} already has an attached WebSocket", key.as_str());
        return Err(EpisodeFault::new(FaultCode::Session, message));
    }
    play.attachment = Attachment::Attached;
    drop(held);
    Ok((key, slot))
}

async fn detach(hosted: &HostedGames, key: &SessionKey, slot: &Slot<Play>, is_own: bool) {
    let mut held = slot.lock().await;
    let was_closing = held.as_ref().is_some_and(|play| play.attachment == Attachment::Closing);
    if is_own || was_closing {
        hosted.sessions.close(key);
    } else if let Some(play) = held.as_mut() {
        play.attachment = Attachment::Free;
    }
}

async fn send(socket: &mut WebSocket, frame: &Value) -> Result<(), axum::Error> {
    socket.send(Message::Text(frame.to_string().into())).await
}

/// Reads a message: its type and data.
fn read(text: &str) -> Result<(String, Value), EpisodeFault> {
    let value: Value = serde_json::from_str(text).map_err(|error| {
        EpisodeFault::new(FaultCode::InvalidJson, format!("Invalid JSON: {error}"))
    })?;
    let nothing = Map::new();
    let fields = value.as_object().unwrap_or(&nothing);
    let Some(kind) = fields.get("type").and_then(Value::as_str) else {
        return Err(EpisodeFault::missing("type", &value));
    };
    if let Some((name, extra)) =
        fields.iter().find(|(name, _)| !["type", "data"].contains(&name.as_str()))
    {
        return Err(EpisodeFault::extra(name, extra));
    }
    let data = fields.get("data").cloned().unwrap_or_else(|| json!({}));
    Ok((kind.to_owned(), data))
}

async fn reply(play: &mut Play, kind: &str, data: &Value) -> Result<Value, EpisodeFault> {
    match kind {
        "reset" => Ok(json!({"type": "observation", "data": play.reset(data).await?})),
        "step" => Ok(json!({"type": "observation", "data": play.step(data).await?})),
        "state" => Ok(json!({"type": "state", "data": play.state()})),
        "mcp" => {
            let answer = match RpcRequest::read(data) {
                Ok(request) => {
                    let result = json_rpc::respond(play, &request).await;
                    json_rpc::answer(request.id.as_ref(), result)
                }
                Err(answer) => answer,
            };
            Ok(json!({"type": "mcp", "data": answer}))
        }
        kind => {
            Err(EpisodeFault::new(FaultCode::UnknownType, format!("Unknown message type: {kind}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_and_what_is_none_is_named() {
        assert_eq!(read(r#"{"type": "state"}"#), Ok(("state".to_owned(), json!({}))));
        for (text, code) in [
            ("{oops", FaultCode::InvalidJson),
            ("[]", FaultCode::Validation),
            (r#"{"data": {}}"#, FaultCode::Validation),
            (r#"{"type": "reset", "id": 4}"#, FaultCode::Validation),
        ] {
            assert_eq!(read(text).unwrap_err().code, code, "{text}");
        }
    }
}
