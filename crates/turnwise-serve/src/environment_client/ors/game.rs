//! An episode behind ORS.

use std::ops::RangeInclusive;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};
use turnwise_environment::{
    Action, CallAttempt, CallError, Environment, EnvironmentError, Observation, Recovery, Step,
    ToolSpec,
};

use super::super::answers::{CallAnswer, blocks, never_empty};
use super::super::fault::{malformed, shown};
use super::super::peer::Peer;
use super::super::rewards::{RewardReader, RewardReading};
use super::super::tasks::{RemoteServer, RemoteTask};
use super::super::turn::{MAX_SENT, RemoteTurn, not_started, unfit};
use super::session::{CallOutcome, OrsSession};

/// A server, and how its environments are played.
#[derive(Debug)]
pub(super) struct OrsServer {
    pub(super) peer: Arc<Peer>,
    pub(super) name: String,
    pub(super) tools: Vec<ToolSpec>,
    pub(super) text: TextTool,
    pub(super) reward: RewardReading,
    pub(super) reward_range: RangeInclusive<f64>,
    pub(super) replay: bool,
}

/// What a text without calls is.
#[derive(Clone, Debug)]
pub(super) enum TextTool {
    /// The end of the episode: the argument of a tool that the model does not see, if it takes one.
    Terminal { name: String, argument: Option<String> },
    /// The argument of a tool.
    Tool { name: String, argument: String },
    /// A mistake.
    None,
}

impl RemoteServer for OrsServer {
    fn protocol(&self) -> &'static str {
        "ors"
    }

    fn environment_name(&self) -> &str {
        &self.name
    }

    fn environment(self: Arc<Self>, task: RemoteTask) -> Box<dyn Environment> {
        let rewards = RewardReader::new(self.reward);
        Box::new(OrsGame { server: self, task, session: None, rewards })
    }
}

/// An episode: a session, from its creation to the end.
struct OrsGame {
    server: Arc<OrsServer>,
    task: RemoteTask,
    session: Option<OrsSession>,
    rewards: RewardReader,
}

impl OrsGame {
    async fn call_all(
        &mut self,
        action: &Action,
        turn: &mut RemoteTurn,
    ) -> Result<(), EnvironmentError> {
        let server = self.server.clone();
        for attempt in &action.calls {
            match attempt {
                CallAttempt::Malformed(call) => {
                    turn.answer(&call.id, CallAnswer::mistake(call.error, &call.message));
                }
                CallAttempt::Call(call) => {
                    let answer = match unfit(call, &server.tools) {
                        _ if turn.is_over => CallAnswer::failed("the episode is over"),
                        Some(answer) => answer,
                        None => self.call(&call.name, &call.arguments, turn).await?,
                    };
                    turn.answer(&call.id, answer);
                }
            }
        }
        Ok(())
    }

    async fn call(
        &mut self,
        name: &str,
        input: &Value,
        turn: &mut RemoteTurn,
    ) -> Result<CallAnswer, EnvironmentError> {
        let session = self.session.as_ref().ok_or_else(not_started)?;
        let answer = match session.call(name, input).await? {
            CallOutcome::Answered(answer) => answer,
            CallOutcome::Mistake(why) => {
                return Ok(CallAnswer::mistake(CallError::InvalidArgs, &why));
            }
        };
        let output = &answer["output"];
        match (answer["ok"].as_bool(), output.is_object()) {
            (Some(false), _) => return refusal(&answer),
            (Some(true), true) => {}
            _ => return Err(malformed("a call", "it is neither a result nor an error")),
        }
        let blocks_sent = output["blocks"].as_array();
        let blocks_sent = blocks_sent.ok_or_else(|| malformed("a call", "it has no blocks"))?;
        turn.is_over |= match &output["finished"] {
            Value::Bool(finished) => *finished,
            Value::Null => false,
            other => {
                let other = shown(&other.to_string());
                return Err(malformed("a call", format!("finished is {other}")));
            }
        };
        let reward = self.rewards.take(&output["reward"])?;
        turn.score(reward, output["metadata"]["solved"].as_bool());
        Ok(CallAnswer::result(never_empty(blocks(blocks_sent))))
    }

    /// Takes a text without calls.
    async fn say(&mut self, text: &str, turn: &mut RemoteTurn) -> Result<(), EnvironmentError> {
        let (name, input, ends) = match &self.server.text {
            TextTool::Terminal { name, argument } => {
                let input = argument.as_ref().map_or_else(|| json!({}), |name| json!({name: text}));
                (name.clone(), input, true)
            }
            TextTool::Tool { name, argument } => (name.clone(), json!({argument: text}), false),
            TextTool::None => {
                turn.say(CallAnswer::failed("call one of the tools"));
                return Ok(());
            }
        };
        if text.len() > MAX_SENT {
            turn.say(CallAnswer::failed("the answer is too long"));
            return Ok(());
        }
        let answer = self.call(&name, &input, turn).await?;
        turn.say(answer);
        turn.is_over |= ends;
        Ok(())
    }
}

/// Reads an error: the agent's mistakes are answers to it.
fn refusal(answer: &Value) -> Result<CallAnswer, EnvironmentError> {
    let error = answer["error"].as_str().unwrap_or("the call failed");
    match answer["reason"].as_str() {
        Some("not_found") => Ok(CallAnswer::mistake(CallError::NotFound, error)),
        // Old servers give no reason.
        Some("input_validation") | None => Ok(CallAnswer::mistake(CallError::InvalidArgs, error)),
        Some(reason) => {
            let (reason, error) = (shown(reason), shown(error));
            Err(EnvironmentError::new(format!("the server refused a call with {reason}: {error}")))
        }
    }
}

#[async_trait]
impl Environment for OrsGame {
    /// Starts the task's episode; the protocol has no seeds.
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        let session = OrsSession::start(&self.server.peer, &self.server.name, &self.task).await?;
        let prompt = session.prompt().await?;
        self.session = Some(session);
        Ok(Observation::from(never_empty(prompt)))
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        if self.session.is_none() {
            return Err(not_started());
        }
        let mut turn = RemoteTurn::default();
        if action.calls.is_empty() {
            self.say(&action.text, &mut turn).await?;
        } else {
            self.call_all(&action, &mut turn).await?;
        }
        if turn.is_over {
            self.session = None;
        }
        Ok(turn.into_step(&self.rewards))
    }

    fn tools(&self) -> Vec<ToolSpec> {
        self.server.tools.clone()
    }

    fn reward_range(&self) -> RangeInclusive<f64> {
        self.server.reward_range.clone()
    }

    fn recovery(&self) -> Recovery {
        if self.server.replay { Recovery::Replay } else { Recovery::Restart }
    }
}
