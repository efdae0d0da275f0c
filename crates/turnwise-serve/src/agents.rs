//! Agents that note what an answer needs beside its text.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};
use turnwise_environment::{Observation, ToolSpec};
use turnwise_rollout::{Act, Agent, AgentError, AgentFactory, Decision, Policy, Renderer, Room};
use turnwise_trajectory::{Identity, MessageGraph, Node, Sampling};

use crate::Gateway;
use crate::answer::TurnReport;
use crate::session::SessionTable;

/// A factory of agents for the episodes of [`ProgramTasks`](crate::ProgramTasks): those of another factory, which also
/// tell the gateway how many tokens a turn has, why it ended, and how likely its tokens were.
pub struct GatewayAgents {
    inner: Arc<dyn AgentFactory>,
    renderer: Arc<dyn Renderer>,
    sessions: SessionTable,
}

impl GatewayAgents {
    /// Wraps a factory whose agents use this renderer.
    #[must_use]
    pub fn new(
        inner: Arc<dyn AgentFactory>,
        renderer: Arc<dyn Renderer>,
        gateway: &Gateway,
    ) -> Self {
        Self { inner, renderer, sessions: gateway.sessions().clone() }
    }

    fn wrapped(&self, inner: Box<dyn Agent>, request: Option<u64>) -> Box<dyn Agent> {
        let (renderer, sessions) = (self.renderer.clone(), self.sessions.clone());
        Box::new(GatewayAgent { inner, renderer, sessions, request })
    }
}

impl std::fmt::Debug for GatewayAgents {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("GatewayAgents").finish_non_exhaustive()
    }
}

impl AgentFactory for GatewayAgents {
    fn renderer(&self) -> &str {
        self.inner.renderer()
    }

    fn sampling(&self) -> Vec<Sampling> {
        self.inner.sampling()
    }

    fn agent(&self, identity: &Identity, tools: Vec<ToolSpec>) -> Box<dyn Agent> {
        self.wrapped(self.inner.agent(identity, tools), None)
    }

    fn restore(&self, mut snapshot: Value) -> Result<Box<dyn Agent>, AgentError> {
        let inner = self.inner.restore(snapshot["agent"].take())?;
        Ok(self.wrapped(inner, snapshot["request"].as_u64()))
    }
}

struct GatewayAgent {
    inner: Box<dyn Agent>,
    renderer: Arc<dyn Renderer>,
    sessions: SessionTable,
    /// The request whose turn comes next.
    request: Option<u64>,
}

impl GatewayAgent {
    fn report(&self, decision: &Decision) -> TurnReport {
        let graph = self.inner.graph();
        let node = graph.node(decision.node);
        let tokens: Vec<(String, f32)> =
            node.sampled().map(|token| (self.renderer.text(&[token.id]), token.logprob)).collect();
        let n_all = graph.ids_to(decision.node).len();
        TurnReport {
            stop: decision.stop,
            n_prompt: n_all - Node::sampled(node).count(),
            n_sampled: tokens.len(),
            tokens,
        }
    }
}

#[async_trait]
impl Agent for GatewayAgent {
    fn observe(&mut self, observation: &Observation) -> Result<(), AgentError> {
        self.request = observation.request.as_ref().map(|request| request.number);
        self.inner.observe(observation)
    }

    async fn act(&mut self, policy: &dyn Policy, room: Room) -> Result<Act, AgentError> {
        let act = self.inner.act(policy, room).await?;
        if let (Act::Decided(decision), Some(request)) = (&act, self.request) {
            self.sessions.report(request, self.report(decision));
        }
        Ok(act)
    }

    fn n_context(&self) -> usize {
        self.inner.n_context()
    }

    fn n_drawn(&self) -> usize {
        self.inner.n_drawn()
    }

    fn n_pending(&self) -> usize {
        self.inner.n_pending()
    }

    fn graph(&self) -> &MessageGraph {
        self.inner.graph()
    }

    fn into_graph(self: Box<Self>) -> MessageGraph {
        self.inner.into_graph()
    }

    fn snapshot(&self) -> Value {
        json!({"agent": self.inner.snapshot(), "request": self.request})
    }
}
