use async_trait::async_trait;
use serde_json::Value;
use turnwise_environment::{Action, Observation, ToolSpec};
use turnwise_trajectory::{Identity, MessageGraph, NodeId, Sampling, StopReason};

use crate::{Policy, PolicyError, RenderError};

/// The number of tokens that an agent may sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The number of tokens of the whole turn, including those sampled before an interruption.
    pub turn: usize,
    /// The number of tokens before the agent must return [`Act::Interrupted`].
    pub now: usize,
}

/// The result of a call to [`Agent::act`].
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// The agent has decided, and its turn is in the graph.
    Decided(Decision),
    /// The agent has sampled a turn for itself, such as a summary: a turn in the graph that no environment answers. The
    /// agent continues at the next call.
    Aside(Decision),
    /// The agent was interrupted. It keeps the sampled tokens and continues at the next call.
    Interrupted,
}

/// One finished turn of the agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The action.
    pub action: Action,
    /// The node that holds the tokens.
    pub node: NodeId,
    /// The reason why sampling stopped.
    pub stop: StopReason,
    /// The engine that sampled the tokens.
    pub engine: String,
}

/// The layer between an environment and a policy: maps observations to prompts and samples to actions.
///
/// # Contract
///
/// - The caller calls `observe`, then `act` until it has decided for the environment, then `observe` again.
/// - `act` may be called again after [`Act::Interrupted`], also under newer weights; the tokens sampled before are
///   kept.
/// - The graph holds exactly the tokens that the engine read and those that it sampled, and is append-only: each path
///   from a root is the content of one context.
///
/// # Example
///
/// [`ChatAgent`](crate::ChatAgent) is the usual agent. Another agent can wrap it and change what the policy reads;
/// here, every observation ends with a reminder:
///
/// ```
/// use std::sync::Arc;
///
/// use turnwise_environment::{Message, Observation, async_trait};
/// use turnwise_rollout::{Act, Agent, AgentError, AgentFactory, ChatAgents, Policy, Room};
/// use turnwise_trajectory::{MessageGraph, Sampling};
/// # use serde_json::Value;
/// # use turnwise_testkit::{AlphabetRenderer, TabularModel};
/// # use turnwise_environment::TaskKey;
/// # use turnwise_trajectory::{GroupId, Identity};
/// #
/// # fn identity() -> Identity {
/// #     Identity {
/// #         environment: "letters".to_owned(),
/// #         environment_version: 1,
/// #         task: TaskKey::of("one"),
/// #         task_index: 0,
/// #         group: GroupId(0),
/// #         member: 0,
/// #         attempt: 0,
/// #         environment_seed: 1,
/// #         sampling_seed: 2,
/// #     }
/// # }
///
/// struct Reminding {
///     inner: Box<dyn Agent>,
/// }
///
/// #[async_trait]
/// impl Agent for Reminding {
///     fn observe(&mut self, observation: &Observation) -> Result<(), AgentError> {
///         let mut observation = observation.clone();
///         observation.messages.push(Message::user("Answer with one letter."));
///         self.inner.observe(&observation)
///     }
///
///     async fn act(&mut self, policy: &dyn Policy, room: Room) -> Result<Act, AgentError> {
///         self.inner.act(policy, room).await
///     }
///
///     // The other methods go to `inner` too.
/// #     fn n_context(&self) -> usize {
/// #         self.inner.n_context()
/// #     }
/// #
/// #     fn n_drawn(&self) -> usize {
/// #         self.inner.n_drawn()
/// #     }
/// #
/// #     fn n_pending(&self) -> usize {
/// #         self.inner.n_pending()
/// #     }
/// #
/// #     fn graph(&self) -> &MessageGraph {
/// #         self.inner.graph()
/// #     }
/// #
/// #     fn into_graph(self: Box<Self>) -> MessageGraph {
/// #         self.inner.into_graph()
/// #     }
/// #
/// #     fn snapshot(&self) -> Value {
/// #         self.inner.snapshot()
/// #     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), AgentError> {
/// let renderer = Arc::new(AlphabetRenderer::new("ab"));
/// let model = TabularModel::new(renderer.n_ids());
/// let chat = ChatAgents::new(renderer);
/// let mut agent = Reminding { inner: chat.agent(&identity(), Vec::new()) };
/// agent.observe(&"Which letter comes first?".into())?;
/// let act = agent.act(&model, Room { turn: 4, now: 4 }).await?;
/// assert!(matches!(act, Act::Decided(_)));
/// assert_eq!(agent.graph().nodes()[1].message.content, "Answer with one letter.");
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait Agent: Send {
    /// Appends an observation of the environment.
    ///
    /// # Errors
    /// If the observation cannot be rendered.
    fn observe(&mut self, observation: &Observation) -> Result<(), AgentError>;

    /// Samples the next turn.
    ///
    /// # Errors
    /// If the policy fails or its answer breaks its contract.
    async fn act(&mut self, policy: &dyn Policy, room: Room) -> Result<Act, AgentError>;

    /// Returns the number of tokens of the next request's prompt.
    fn n_context(&self) -> usize;

    /// Returns the number of tokens sampled in the episode so far, including those of an interrupted turn.
    fn n_drawn(&self) -> usize;

    /// Returns the number of tokens sampled in the interrupted turn; 0 between turns.
    fn n_pending(&self) -> usize;

    /// Returns all messages and tokens so far, without an interrupted turn.
    fn graph(&self) -> &MessageGraph;

    /// Consumes the agent and returns its graph, with the tokens of an interrupted turn as a last node.
    fn into_graph(self: Box<Self>) -> MessageGraph;

    /// Returns the state, for [`AgentFactory::restore`].
    fn snapshot(&self) -> Value;
}

/// Creates the agents of a run.
pub trait AgentFactory: Send + Sync {
    /// Returns the hash that trajectories carry: [`Renderer::fingerprint`](crate::Renderer::fingerprint).
    fn renderer(&self) -> &str;

    /// Returns the sampling settings that tokens refer to.
    fn sampling(&self) -> Vec<Sampling>;

    /// Creates an agent for an episode.
    fn agent(&self, identity: &Identity, tools: Vec<ToolSpec>) -> Box<dyn Agent>;

    /// Restores an agent from a snapshot.
    ///
    /// # Errors
    /// If the value is not a snapshot of such an agent.
    fn restore(&self, snapshot: Value) -> Result<Box<dyn Agent>, AgentError>;
}

/// A fault of the engine, the renderer or a snapshot, never of the model.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AgentError {
    /// The engine failed.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The engine's answer breaks its contract.
    #[error("cannot accept the engine's answer: {0}")]
    BadEngine(String),
    /// The conversation cannot be rendered.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// The snapshot is invalid.
    #[error("cannot restore the agent: {0}")]
    Snapshot(String),
}
