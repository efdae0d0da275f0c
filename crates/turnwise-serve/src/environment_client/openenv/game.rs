//! An episode behind OpenEnv.

use std::ops::RangeInclusive;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};
use turnwise_environment::{
    Action, CallAttempt, CallError, Environment, EnvironmentError, Observation, Recovery, Step,
    ToolSpec,
};

use super::super::action::ActionForm;
use super::super::answers::{CallAnswer, blocks, never_empty, observation_text};
use super::super::fault::shown;
use super::super::patience::BackOff;
use super::super::peer::Peer;
use super::super::rewards::{RewardReader, RewardReading};
use super::super::tasks::{RemoteServer, RemoteTask};
use super::super::turn::{MAX_DEPTH, MAX_SENT, RemoteTurn, is_shallow, not_started, unfit};
use super::frames::{Frame, Observed};
use super::socket::{EnvSocket, NotOpened};
use crate::key::SessionKey;

/// A server, and how its environments are played.
#[derive(Debug)]
pub(super) struct OpenEnvServer {
    pub(super) peer: Peer,
    pub(super) name: String,
    pub(super) play: Play,
    pub(super) reward: RewardReading,
    pub(super) reward_range: RangeInclusive<f64>,
    pub(super) replay: bool,
}

/// How the model acts.
#[derive(Clone, Debug)]
pub(super) enum Play {
    /// It calls tools.
    Tools {
        tools: Vec<ToolSpec>,
        /// The tool that is given a text, and the argument.
        text_tool: Option<(String, String)>,
    },
    /// It writes actions.
    Action { form: ActionForm },
}

impl RemoteServer for OpenEnvServer {
    fn protocol(&self) -> &'static str {
        "openenv"
    }

    fn environment_name(&self) -> &str {
        &self.name
    }

    fn environment(self: Arc<Self>, task: RemoteTask) -> Box<dyn Environment> {
        let rewards = RewardReader::new(self.reward);
        Box::new(OpenEnvGame { server: self, task, socket: None, rewards })
    }
}

/// An episode: a connection, from reset to the end.
struct OpenEnvGame {
    server: Arc<OpenEnvServer>,
    task: RemoteTask,
    socket: Option<EnvSocket>,
    rewards: RewardReader,
}

/// Opens a connection and asks its first question; waits while the server has no room.
pub(super) async fn connected(
    peer: &Peer,
    kind: &str,
    data: &Value,
) -> Result<(EnvSocket, Frame), EnvironmentError> {
    let mut back_off = BackOff::new(peer.patience.ready);
    loop {
        let failure = match EnvSocket::open(peer).await {
            Err(NotOpened::Never(error)) => return Err(error),
            Err(NotOpened::Later(error)) => error,
            Ok(socket) => match socket.ask(kind, data.clone()).await? {
                Frame::Refused(refusal) if refusal.is_of_capacity() => refusal.error(kind),
                frame => return Ok((socket, frame)),
            },
        };
        match back_off.pause(None) {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return Err(failure),
        }
    }
}

/// What one message to the server led to.
enum Sent {
    Observed(Observed),
    /// The action does not fit.
    Mistake(String),
}

impl OpenEnvGame {
    async fn send(&mut self, action: Value) -> Result<Sent, EnvironmentError> {
        let socket = self.socket.as_ref().ok_or_else(not_started)?;
        match socket.ask("step", action).await? {
            Frame::Observed(observed) => Ok(Sent::Observed(observed)),
            Frame::Refused(refusal) => match refusal.mistake() {
                Some(mistake) => Ok(Sent::Mistake(mistake)),
                None => Err(refusal.error("a step")),
            },
            frame @ Frame::Mcp(_) => Err(frame.unexpected("a step")),
        }
    }

    /// Takes what comes with an observation.
    fn take(&mut self, observed: &Observed, turn: &mut RemoteTurn) -> Result<(), EnvironmentError> {
        turn.score(self.rewards.take(&observed.reward)?, observed.solved);
        turn.is_over |= observed.is_done;
        Ok(())
    }

    /// Makes all calls of an action, one after another.
    async fn call_all(
        &mut self,
        action: &Action,
        tools: &[ToolSpec],
        turn: &mut RemoteTurn,
    ) -> Result<(), EnvironmentError> {
        for attempt in &action.calls {
            match attempt {
                CallAttempt::Malformed(call) => {
                    turn.answer(&call.id, CallAnswer::mistake(call.error, &call.message));
                }
                CallAttempt::Call(call) => {
                    let answer = match unfit(call, tools) {
                        _ if turn.is_over => CallAnswer::failed("the episode is over"),
                        Some(answer) => answer,
                        None => self.act(called(&call.name, &call.arguments), turn).await?,
                    };
                    turn.answer(&call.id, answer);
                }
            }
        }
        Ok(())
    }

    /// Takes a text without calls: a tool's argument, or an action that the model wrote.
    async fn say(&mut self, text: &str, turn: &mut RemoteTurn) -> Result<(), EnvironmentError> {
        let action = match &self.server.play {
            Play::Tools { text_tool: None, .. } => Err("call one of the tools".to_owned()),
            Play::Tools { text_tool: Some((name, argument)), .. } => {
                Ok(called(name, &json!({argument: text})))
            }
            Play::Action { form } => form.action(text),
        };
        let answer = match action {
            Ok(_) if text.len() > MAX_SENT => CallAnswer::failed("the action is too long"),
            Ok(action) if !is_shallow(&action, MAX_DEPTH) => {
                CallAnswer::failed("the action is nested too deeply")
            }
            Ok(action) => self.act(action, turn).await?,
            Err(why) => CallAnswer::failed(&why),
        };
        turn.say(answer);
        Ok(())
    }

    async fn act(
        &mut self,
        action: Value,
        turn: &mut RemoteTurn,
    ) -> Result<CallAnswer, EnvironmentError> {
        match self.send(action).await? {
            Sent::Mistake(why) => Ok(CallAnswer::mistake(CallError::InvalidArgs, &why)),
            Sent::Observed(observed) => {
                self.take(&observed, turn)?;
                read_answer(&observed.observation)
            }
        }
    }
}

/// Returns the action that calls a tool.
fn called(name: &str, arguments: &Value) -> Value {
    json!({"type": "call_tool", "tool_name": name, "arguments": arguments})
}

/// Reads an observation: that of a tool's call, or any other.
fn read_answer(observation: &Value) -> Result<CallAnswer, EnvironmentError> {
    if !observation["tool_name"].is_string() {
        return Ok(CallAnswer::result(never_empty(observation_text(observation))));
    }
    let error = &observation["error"];
    if !error.is_null() {
        let message = error["message"].as_str().unwrap_or("the tool failed");
        return match error["error_type"].as_str() {
            Some("transport_error") => {
                let what = format!("the server cannot reach its tool: {}", shown(message));
                Err(EnvironmentError::new(what))
            }
            Some("tool_not_found") => Ok(CallAnswer::mistake(CallError::NotFound, message)),
            Some("invalid_args") => Ok(CallAnswer::mistake(CallError::InvalidArgs, message)),
            Some("timeout") => Ok(CallAnswer::mistake(CallError::Timeout, message)),
            // Tools report wrong arguments by raising, too.
            _ => Ok(CallAnswer::failed(message)),
        };
    }
    let result = &observation["result"];
    let text = match result["content"].as_array() {
        Some(content) => blocks(content),
        None => observation_text(result),
    };
    let is_error = ["is_error", "isError"].iter().any(|key| result[*key] == true);
    let text = never_empty(text);
    Ok(if is_error { CallAnswer::failed(&text) } else { CallAnswer::result(text) })
}

#[async_trait]
impl Environment for OpenEnvGame {
    async fn reset(&mut self, seed: u64) -> Result<Observation, EnvironmentError> {
        let episode = SessionKey::random();
        // Random generators of NumPy take 32 bits.
        let data = match &self.task {
            RemoteTask::OfSplit { split, index } => {
                json!({"seed": seed >> 33, "episode_id": episode.as_str(), "split": split, "index": index})
            }
            RemoteTask::Seed(seed) => json!({"seed": seed, "episode_id": episode.as_str()}),
        };
        let (socket, frame) = connected(&self.server.peer, "reset", &data).await?;
        let Frame::Observed(observed) = frame else { return Err(frame.unexpected("reset")) };
        if observed.is_done {
            return Err(EnvironmentError::new("the server's episode is over before it began"));
        }
        self.socket = Some(socket);
        let text = observation_text(&observed.observation);
        let text = if text.trim().is_empty() { "The episode begins.".to_owned() } else { text };
        Ok(Observation::from(text))
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        if self.socket.is_none() {
            return Err(not_started());
        }
        let mut turn = RemoteTurn::default();
        if action.calls.is_empty() {
            self.say(&action.text, &mut turn).await?;
        } else {
            self.call_all(&action, &self.tools(), &mut turn).await?;
        }
        if turn.is_over {
            self.socket = None;
        }
        Ok(turn.into_step(&self.rewards))
    }

    fn tools(&self) -> Vec<ToolSpec> {
        match &self.server.play {
            Play::Tools { tools, .. } => tools.clone(),
            Play::Action { .. } => Vec::new(),
        }
    }

    fn reward_range(&self) -> RangeInclusive<f64> {
        self.server.reward_range.clone()
    }

    fn recovery(&self) -> Recovery {
        if self.server.replay { Recovery::Replay } else { Recovery::Restart }
    }
}
