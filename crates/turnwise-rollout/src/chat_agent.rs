use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use turnwise_environment::{Message, Observation, Role, ToolSpec};
use turnwise_trajectory::{
    Author, Identity, MessageGraph, Node, NodeId, PolicyVersion, SampledToken, SampledTokens,
    Sampling, Span, StopReason, TokenId,
};

use crate::{
    Act, Agent, AgentError, AgentFactory, Decision, Policy, Rendered, Renderer, Room,
    SampleRequest, check_sample,
};

/// Makes [`ChatAgent`]s.
#[derive(Clone)]
pub struct ChatAgents {
    /// The conversation's form.
    pub renderer: Arc<dyn Renderer>,
    /// How tokens are drawn.
    pub sampling: Sampling,
}

impl fmt::Debug for ChatAgents {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ChatAgents")
            .field("renderer", &self.renderer.fingerprint())
            .field("sampling", &self.sampling)
            .finish()
    }
}

impl AgentFactory for ChatAgents {
    fn renderer(&self) -> &str {
        self.renderer.fingerprint()
    }

    fn sampling(&self) -> Vec<Sampling> {
        vec![self.sampling]
    }

    fn agent(&self, identity: &Identity, tools: Vec<ToolSpec>) -> Box<dyn Agent> {
        let state = State {
            seed: identity.sampling_seed,
            tools,
            graph: MessageGraph::default(),
            leaf: None,
            stop: StopReason::EndOfTurn,
            generation: Vec::new(),
            pending: Pending::default(),
            n_drawn: 0,
            engine: String::new(),
        };
        Box::new(ChatAgent::new(self.clone(), state))
    }

    fn restore(&self, snapshot: Value) -> Result<Box<dyn Agent>, AgentError> {
        let state: State = serde_json::from_value(snapshot)
            .map_err(|error| AgentError::Snapshot(error.to_string()))?;
        state.graph.validate().map_err(|error| AgentError::Snapshot(error.to_string()))?;
        if state.leaf.is_some_and(|leaf| leaf.0 as usize >= state.graph.nodes().len()) {
            return Err(AgentError::Snapshot("its newest message is not in its graph".to_owned()));
        }
        Ok(Box::new(ChatAgent::new(self.clone(), state)))
    }
}

/// An agent that holds one conversation and appends to it.
///
/// Only what the environment said is ever encoded; the prompt of a turn is the prompt of the turn before, what was drawn,
/// and the bridge between.
pub struct ChatAgent {
    settings: ChatAgents,
    state: State,
    /// The ids of the branch and the lead-in: the prompt of the next request without what is pending. Derived from the
    /// state, kept so that a turn costs its own tokens and not the whole history.
    held: Vec<TokenId>,
    /// The newest version on the branch. Derived too.
    newest: PolicyVersion,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    seed: u64,
    tools: Vec<ToolSpec>,
    graph: MessageGraph,
    leaf: Option<NodeId>,
    /// How the last turn ended.
    stop: StopReason,
    /// The lead-in to the turn that is due.
    generation: Vec<TokenId>,
    pending: Pending,
    n_drawn: u64,
    engine: String,
}

/// What was drawn in a turn that is not over.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Pending {
    span: Option<Span>,
}

impl Pending {
    fn tokens(&self) -> Option<&SampledTokens> {
        match &self.span {
            Some(Span::Sampled(tokens)) => Some(tokens),
            _ => None,
        }
    }

    fn ids(&self) -> &[TokenId] {
        self.tokens().map_or(&[], SampledTokens::ids)
    }

    fn extend(&mut self, new: Vec<SampledToken>) {
        match &mut self.span {
            Some(Span::Sampled(tokens)) => tokens.extend(new),
            _ => self.span = Some(Span::Sampled(new.into())),
        }
    }
}

impl ChatAgent {
    fn new(settings: ChatAgents, state: State) -> Self {
        let mut held = state.leaf.map_or_else(Vec::new, |leaf| state.graph.ids_to(leaf));
        held.extend_from_slice(&state.generation);
        let drawn = state.graph.nodes().iter().flat_map(Node::sampled_spans);
        let versions = drawn.chain(state.pending.tokens()).flat_map(SampledTokens::versions);
        let newest = versions.map(|(version, _)| version).max().unwrap_or_default();
        Self { settings, state, held, newest }
    }

    fn request(&self, room: Room) -> SampleRequest {
        let pending = self.state.pending.ids();
        let mut prompt = Vec::with_capacity(self.held.len() + pending.len());
        prompt.extend_from_slice(&self.held);
        prompt.extend_from_slice(pending);
        SampleRequest {
            prompt,
            stop: self.settings.renderer.stop_tokens().to_vec(),
            max_tokens: room.now.min(room.turn - pending.len()),
            sampling: self.settings.sampling,
            seed: self.state.seed,
            first_index: self.state.n_drawn,
            min_version: self.newest,
            session: self.state.seed,
        }
    }

    fn append(&mut self, message: &Message, author: Author, spans: Vec<Span>) {
        for span in &spans {
            span.extend_ids(&mut self.held);
        }
        let node = Node { parent: self.state.leaf, author, message: message.clone(), spans };
        self.state.leaf = Some(self.state.graph.push(node));
    }

    /// Puts the close that the model did not write into its last turn.
    fn close(&mut self, close: Vec<TokenId>) {
        if let Some(leaf) = self.state.leaf
            && !close.is_empty()
        {
            self.held.extend_from_slice(&close);
            self.state.graph.node_mut(leaf).spans.push(Span::Forced(close));
        }
    }

    /// Ends the turn with what is pending.
    fn commit(&mut self, stop: StopReason) -> Decision {
        let mut pending = std::mem::take(&mut self.state.pending);
        if let Some(Span::Sampled(tokens)) = &mut pending.span {
            tokens.shrink_to_fit();
        }
        let ids = pending.ids();
        let action = self.settings.renderer.parse(ids);
        self.held.extend_from_slice(ids);
        let generation = std::mem::take(&mut self.state.generation);
        let node = Node {
            parent: self.state.leaf,
            author: Author::Policy,
            message: action.to_message(),
            spans: [Some(Span::Scaffold(generation)), pending.span].into_iter().flatten().collect(),
        };
        let node = self.state.graph.push(node);
        self.state.leaf = Some(node);
        self.state.stop = stop;
        Decision { action, node, stop, engine: self.state.engine.clone() }
    }
}

#[async_trait]
impl Agent for ChatAgent {
    fn observe(&mut self, observation: &Observation) -> Result<(), AgentError> {
        let renderer = &self.settings.renderer;
        let Rendered { close, messages, generation } = match self.state.leaf {
            None => renderer.open(observation, &self.state.tools)?,
            Some(_) => renderer.bridge(self.state.stop, observation)?,
        };
        assert_eq!(messages.len(), observation.messages.len(), "a renderer renders every message");
        self.close(close);
        for (message, spans) in observation.messages.iter().zip(messages) {
            self.append(message, author_of(message), spans);
        }
        self.held.extend_from_slice(&generation);
        self.state.generation = generation;
        Ok(())
    }

    async fn act(&mut self, policy: &dyn Policy, room: Room) -> Result<Act, AgentError> {
        let request = self.request(room);
        let sample = policy.sample(request.clone()).await?;
        check_sample(&sample, &request).map_err(AgentError::BadEngine)?;
        if let Some(last) = sample.tokens.last() {
            self.newest = last.version;
        }
        self.state.n_drawn += sample.tokens.len() as u64;
        self.state.engine = sample.engine;
        self.state.pending.extend(sample.tokens);
        // An engine may be interrupted by the very token that fills the turn.
        let is_full = self.n_pending() >= room.turn;
        Ok(match sample.stop {
            StopReason::EndOfTurn => Act::Decided(self.commit(StopReason::EndOfTurn)),
            _ if is_full => Act::Decided(self.commit(StopReason::MaxTokens)),
            StopReason::MaxTokens | StopReason::Interrupted => Act::Interrupted,
        })
    }

    fn n_context(&self) -> usize {
        self.held.len() + self.n_pending()
    }

    fn n_drawn(&self) -> usize {
        self.state.n_drawn as usize
    }

    fn n_pending(&self) -> usize {
        self.state.pending.ids().len()
    }

    fn graph(&self) -> &MessageGraph {
        &self.state.graph
    }

    fn into_graph(mut self: Box<Self>) -> MessageGraph {
        if self.n_pending() > 0 {
            self.commit(StopReason::Interrupted);
        }
        self.state.graph
    }

    fn snapshot(&self) -> Value {
        serde_json::to_value(&self.state).expect("the state is plain data")
    }
}

impl fmt::Debug for ChatAgent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ChatAgent")
            .field("n_context", &self.n_context())
            .finish_non_exhaustive()
    }
}

fn author_of(message: &Message) -> Author {
    match message.role {
        Role::System => Author::System,
        Role::User => Author::Environment,
        Role::Tool => Author::Tool,
        Role::Assistant => Author::Fabricated,
    }
}
