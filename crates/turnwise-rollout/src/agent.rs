use async_trait::async_trait;
use serde_json::Value;
use turnwise_environment::{Action, Observation, ToolSpec};
use turnwise_trajectory::{Identity, MessageGraph, NodeId, Sampling, StopReason};

use crate::{Policy, PolicyError, RenderError};

/// How many tokens an agent may draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Before the turn is over, from its first token on; what was drawn before an interruption counts.
    pub turn: usize,
    /// Before it must answer [`Act::Interrupted`].
    pub now: usize,
}

/// What an agent answers when asked to act.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// It has decided, and its turn is in the graph.
    Decided(Decision),
    /// It has decided something between itself and its memory, such as a summary: a turn in the graph that no environment
    /// answers. It goes on when asked again.
    Aside(Decision),
    /// It was interrupted, keeps what was drawn, and goes on when asked again.
    Interrupted,
}

/// One finished turn of the agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// What it does.
    pub action: Action,
    /// The node that holds the tokens.
    pub node: NodeId,
    /// Why drawing ended.
    pub stop: StopReason,
    /// Which engine drew the tokens.
    pub engine: String,
}

/// What stands between an environment and a policy: it turns observations into prompts and samples into actions.
///
/// # Contract
///
/// - The caller calls `observe`, then `act` until it has decided for the environment, then `observe` again.
/// - `act` may be called again after [`Act::Interrupted`], also under newer weights; what was drawn before stays.
/// - The graph holds exactly what the engine saw and what it drew, and is only appended to: each path from a root is what was
///   in one context.
#[async_trait]
pub trait Agent: Send {
    /// Takes in what the environment said.
    ///
    /// # Errors
    /// When it cannot be put into tokens.
    fn observe(&mut self, observation: &Observation) -> Result<(), AgentError>;

    /// Draws the next turn.
    ///
    /// # Errors
    /// When the policy fails or answers something impossible.
    async fn act(&mut self, policy: &dyn Policy, room: Room) -> Result<Act, AgentError>;

    /// The tokens of the next request's prompt.
    fn n_context(&self) -> usize;

    /// The tokens drawn in the episode so far, those of an interrupted turn included.
    fn n_drawn(&self) -> usize;

    /// The tokens drawn in the interrupted turn; 0 between turns.
    fn n_pending(&self) -> usize;

    /// Everything said and drawn so far, an interrupted turn excepted.
    fn graph(&self) -> &MessageGraph;

    /// Gives the graph up at the end; tokens of an interrupted turn come with it as a last node.
    fn into_graph(self: Box<Self>) -> MessageGraph;

    /// The state, for [`AgentFactory::restore`].
    fn snapshot(&self) -> Value;
}

/// Makes the agents of a run.
pub trait AgentFactory: Send + Sync {
    /// The hash that trajectories carry: [`Renderer::fingerprint`](crate::Renderer::fingerprint).
    fn renderer(&self) -> &str;

    /// The sampling settings that tokens refer to.
    fn sampling(&self) -> Vec<Sampling>;

    /// A fresh agent for an episode.
    fn agent(&self, identity: &Identity, tools: Vec<ToolSpec>) -> Box<dyn Agent>;

    /// An agent that goes on from a snapshot.
    ///
    /// # Errors
    /// When the value is not a snapshot of such an agent.
    fn restore(&self, snapshot: Value) -> Result<Box<dyn Agent>, AgentError>;
}

/// Why an agent cannot go on. Never the model's doing.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AgentError {
    /// The engine did not answer.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The engine answered something impossible.
    #[error("accept the engine's answer: {0}")]
    BadEngine(String),
    /// The conversation cannot be put into tokens.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// A snapshot that is none.
    #[error("restore an agent: {0}")]
    Snapshot(String),
}
