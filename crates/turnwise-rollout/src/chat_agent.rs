use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use turnwise_environment::{Message, Observation, Role, ToolSpec};
use turnwise_trajectory::{
    Author, Edge, EdgeKind, Identity, MessageGraph, Node, NodeId, PolicyVersion, SampledToken,
    SampledTokens, Sampling, Span, StopReason, TokenId,
};

mod whole;

use whole::TurnEnd;

use crate::{
    Act, Agent, AgentError, AgentFactory, Bridged, Continued, Decision, EndedTurn, Policy, Preface,
    RenderError, Rendered, Renderer, Room, Said, Sample, SampleRequest, SessionId, TokenConstraint,
    check_sample,
};

/// A factory of [`ChatAgent`]s.
#[derive(Clone)]
pub struct ChatAgents {
    /// The renderer of the conversation.
    pub renderer: Arc<dyn Renderer>,
    /// The sampling settings.
    pub sampling: Sampling,
    /// When and how a long conversation is replaced by its summary; `None` for never.
    pub compaction: Option<Compaction>,
    /// A constraint on the sampled tokens of every turn, such as a grammar; `None` allows every token. The engine must
    /// support [`Policy::sample_constrained`].
    pub constraint: Option<Arc<dyn TokenConstraint>>,
    /// What precedes every conversation.
    pub preface: Preface,
}

/// Compaction of an agent's context.
///
/// If the next prompt would have more than `at_tokens` tokens, the agent asks the policy for a summary first: a turn
/// that is sampled and trained like any other, and that no environment answers. A new branch then starts from the
/// messages before the policy's first turn, the summary as a user message, and the environment's last message. A branch
/// without a turn of its own is not summarised, so that there is always progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Compaction {
    /// The longest prompt that is not compacted, in tokens.
    pub at_tokens: usize,
    /// The request for a summary, as a user message.
    pub prompt: String,
}

impl ChatAgents {
    /// Returns a factory that samples from the model's own distribution, without compaction, constraint or preface.
    #[must_use]
    pub fn new(renderer: Arc<dyn Renderer>) -> Self {
        Self {
            renderer,
            sampling: Sampling::default(),
            compaction: None,
            constraint: None,
            preface: Preface::default(),
        }
    }
}

impl fmt::Debug for ChatAgents {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ChatAgents")
            .field("renderer", &self.renderer.fingerprint())
            .field("sampling", &self.sampling)
            .field("compaction", &self.compaction)
            .field("constraint", &self.constraint)
            .field("preface", &self.preface)
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
            prefill: Vec::new(),
            waiting: None,
            pending: Pending::default(),
            n_drawn: 0,
            engine: String::new(),
            end: TurnEnd::default(),
        };
        Box::new(ChatAgent::new(self.clone(), state))
    }

    fn restore(&self, snapshot: Value) -> Result<Box<dyn Agent>, AgentError> {
        let state: State = serde_json::from_value(snapshot)
            .map_err(|error| AgentError::Snapshot(error.to_string()))?;
        state.graph.validate().map_err(|error| AgentError::Snapshot(error.to_string()))?;
        if state.leaf.is_some_and(|leaf| leaf.0 as usize >= state.graph.nodes().len()) {
            return Err(AgentError::Snapshot("the newest message is not in the graph".to_owned()));
        }
        Ok(Box::new(ChatAgent::new(self.clone(), state)))
    }
}

/// An agent that holds one conversation and appends to it.
///
/// Only the environment's messages are encoded; the prompt of a turn is the prompt of the previous turn, its sampled
/// tokens, and the bridge between them. If the renderer reports that its template rewrites history, the whole
/// conversation is rendered and forks: the new branch leaves the old one at the last message up to which both have the
/// same tokens. The new branch holds the policy's earlier turns as context; only the old branch has them as sampled
/// tokens.
pub struct ChatAgent {
    settings: ChatAgents,
    state: State,
    /// The ids of the branch, the lead-in and the prefill: the prompt of the next request without pending tokens.
    /// Derived from the state, and kept so that a turn costs its own tokens and not the whole history.
    held: Vec<TokenId>,
    /// The newest version of the sampled tokens, also derived from the state.
    newest: PolicyVersion,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    seed: u64,
    tools: Vec<ToolSpec>,
    graph: MessageGraph,
    leaf: Option<NodeId>,
    /// The reason why the last turn stopped.
    stop: StopReason,
    /// The lead-in to the next turn.
    generation: Vec<TokenId>,
    /// The forced tokens at the beginning of the next turn.
    #[serde(default)]
    prefill: Vec<TokenId>,
    /// The environment's messages that wait while a summary is sampled.
    #[serde(default)]
    waiting: Option<Vec<Message>>,
    pending: Pending,
    n_drawn: u64,
    engine: String,
    /// What ends the next turn, besides the run's limits.
    #[serde(default, skip_serializing_if = "TurnEnd::is_default")]
    end: TurnEnd,
}

/// The tokens sampled in an unfinished turn.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Pending {
    /// Always a `Span::Sampled`; `None` before the first token.
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

    /// Appends tokens, each with the ids that it was sampled from (`kept` is empty if all had the whole vocabulary).
    fn extend(&mut self, new: Vec<SampledToken>, kept: &[Vec<TokenId>]) {
        let span = self.span.get_or_insert_with(|| Span::Sampled(SampledTokens::default()));
        let Span::Sampled(tokens) = span else { unreachable!("pending tokens are sampled") };
        for (index, token) in new.into_iter().enumerate() {
            match kept.get(index).filter(|kept| !kept.is_empty()) {
                Some(kept) => tokens.push_kept(token, kept),
                None => tokens.push(token),
            }
        }
    }
}

impl ChatAgent {
    fn new(settings: ChatAgents, state: State) -> Self {
        let mut held = state.leaf.map_or_else(Vec::new, |leaf| state.graph.ids_to(leaf));
        held.extend_from_slice(&state.generation);
        held.extend_from_slice(&state.prefill);
        let drawn = state.graph.nodes().iter().flat_map(Node::sampled_spans);
        let versions = drawn.chain(state.pending.tokens()).flat_map(SampledTokens::versions);
        let newest = versions.map(|(version, _)| version).max().unwrap_or_default();
        Self { settings, state, held, newest }
    }

    /// Returns the request for the next tokens of a turn, after `used` tokens in this call.
    fn request(&self, room: Room, used: usize) -> SampleRequest {
        let pending = self.state.pending.ids();
        let mut prompt = Vec::with_capacity(self.held.len() + pending.len());
        prompt.extend_from_slice(&self.held);
        prompt.extend_from_slice(pending);
        SampleRequest {
            prompt,
            stop: self.settings.renderer.stop_tokens().to_vec(),
            max_tokens: self.state.end.at_once((room.now - used).min(room.turn - pending.len())),
            sampling: self.settings.sampling,
            seed: self.state.seed,
            first_index: self.state.n_drawn,
            min_version: self.newest,
            session: SessionId(self.state.seed),
        }
    }

    /// Takes sampled tokens, up to the one that completes a text at which the turn ends, and returns whether there is one.
    fn take(&mut self, mut sample: Sample) -> bool {
        let n_pending = self.n_pending();
        let mut ids = self.state.pending.ids().to_vec();
        ids.extend(sample.tokens.iter().map(|token| token.id));
        let end = self.state.end.reached(&*self.settings.renderer, &ids, n_pending);
        if let Some(end) = end {
            sample.tokens.truncate(end - n_pending);
            sample.kept.truncate(end - n_pending);
        }
        if let Some(last) = sample.tokens.last() {
            self.newest = last.version;
        }
        self.state.n_drawn += sample.tokens.len() as u64;
        self.state.engine = sample.engine;
        self.state.pending.extend(sample.tokens, &sample.kept);
        end.is_some()
    }

    /// Samples under the constraint, if the agent has one. The constraint holds for the turns that the environment
    /// reads, not for a summary.
    async fn sample(
        &self,
        policy: &dyn Policy,
        request: SampleRequest,
    ) -> Result<Sample, AgentError> {
        let is_summary = self.state.waiting.is_some();
        let constraint = self.settings.constraint.as_ref().filter(|_| !is_summary);
        let Some(constraint) = constraint else { return Ok(policy.sample(request).await?) };
        let constraint = constraint.clone();
        let before = self.state.pending.ids().to_vec();
        let constraint: Arc<dyn TokenConstraint> =
            if before.is_empty() { constraint } else { Arc::new(Continued { constraint, before }) };
        Ok(policy.sample_constrained(request, constraint).await?)
    }

    /// Returns the nodes of the branch.
    fn path(&self) -> Vec<NodeId> {
        self.state.leaf.map_or_else(Vec::new, |leaf| self.state.graph.path_to(leaf))
    }

    /// Plans how the conversation on `path` continues with `new`. After the newest turn the renderer may append.
    fn plan(&self, path: &[NodeId], new: &[Message]) -> Result<BranchPlan, AgentError> {
        let is_newest = path.last().copied() == self.state.leaf;
        self.plan_after(path, self.state.stop, new, is_newest)
    }

    /// Plans like [`plan`](Self::plan), after a turn that stopped for this reason.
    fn plan_after(
        &self,
        path: &[NodeId],
        stop: StopReason,
        new: &[Message],
        may_append: bool,
    ) -> Result<BranchPlan, AgentError> {
        let drawn: Vec<_> = path.iter().map(|id| drawn_in(self.state.graph.node(*id))).collect();
        let said = path.iter().zip(&drawn).map(|(id, drawn)| Said {
            message: &self.state.graph.node(*id).message,
            drawn: drawn.as_deref(),
        });
        let mut conversation: Vec<Said<'_>> = said.collect();
        if may_append && let Some(leaf) = path.last() {
            let node = self.state.graph.node(*leaf);
            let ids: Vec<TokenId> = node.sampled().map(|token| token.id).collect();
            let ended = EndedTurn { ids: &ids, stop };
            let renderer = &self.settings.renderer;
            if let Bridged::Append(rendered) =
                renderer.go_on(ended, &conversation, new, &self.state.tools)?
            {
                return BranchPlan::append(path.len(), new.len(), rendered);
            }
        }
        conversation.extend(new.iter().map(Said::new));
        let rendered = self.settings.renderer.render(&conversation, &self.state.tools)?;
        let held: Vec<_> =
            path.iter().map(|id| ids_of(&self.state.graph.node(*id).spans)).collect();
        BranchPlan::fork(&held, new.len(), rendered)
    }

    /// Adds the nodes of a plan: those of `path` that the new branch does not share, then the new ones.
    fn carry_out(&mut self, path: &[NodeId], new: Vec<(Author, Message)>, plan: BranchPlan) {
        let BranchPlan { kept, close, messages, generation, prefill } = plan;
        self.state.leaf = kept.checked_sub(1).map(|last| path[last]);
        if let Some(leaf) = self.state.leaf
            && !close.is_empty()
        {
            self.state.graph.node_mut(leaf).spans.push(Span::Forced(close));
        }
        let again = path[kept..].iter().map(|id| {
            let node = self.state.graph.node(*id);
            (node.author, node.message.clone())
        });
        let said: Vec<(Author, Message)> = again.chain(new).collect();
        let is_turn = |message: &Message| message.role == Role::Assistant;
        let mut is_task =
            !path[..kept].iter().any(|id| is_turn(&self.state.graph.node(*id).message));
        for (place, ((author, message), spans)) in said.into_iter().zip(messages).enumerate() {
            is_task &= !is_turn(&message);
            let is_new = kept + place >= path.len();
            let is_shortened =
                is_new && !is_task && self.settings.renderer.shortens(&message, &self.state.tools);
            let node =
                self.state.graph.push(Node { parent: self.state.leaf, author, message, spans });
            self.state.leaf = Some(node);
            if is_shortened {
                self.state.graph.mark_shortened(node);
            }
        }
        self.state.generation = generation;
        self.state.prefill = prefill;
        self.hold();
    }

    /// Derives `held` from the state.
    fn hold(&mut self) {
        self.held = self.state.leaf.map_or_else(Vec::new, |leaf| self.state.graph.ids_to(leaf));
        self.held.extend_from_slice(&self.state.generation);
        self.held.extend_from_slice(&self.state.prefill);
    }

    /// Returns whether a prompt of `n_tokens` is due for compaction and the branch has a turn to summarise.
    fn is_too_long(&self, n_tokens: usize) -> bool {
        let limit = self.settings.compaction.as_ref().map(|compaction| compaction.at_tokens);
        let has_turn = || {
            let path = self.path();
            path.iter().any(|id| self.state.graph.node(*id).sampled().next().is_some())
        };
        limit.is_some_and(|limit| n_tokens > limit) && has_turn()
    }

    /// Starts the branch that continues from the summary in `turn`.
    fn go_on_from(
        &mut self,
        turn: NodeId,
        summary: String,
        waiting: Vec<Message>,
    ) -> Result<(), AgentError> {
        let path = self.path();
        let is_policys = |id: &NodeId| self.state.graph.node(*id).author == Author::Policy;
        let n_head = path.iter().position(is_policys).unwrap_or(path.len());
        // Two nodes precede the summary: its prompt, and before that the end of the summarised history.
        let summarised = path[path.len() - 3];
        let mut new = vec![Message::user(summary)];
        new.extend(waiting);
        let head = &path[..n_head];
        let plan = self.plan(head, &new)?;
        let first = NodeId((self.state.graph.nodes().len() + n_head - plan.kept) as u32);
        let authors = std::iter::once(Author::Policy).chain(new[1..].iter().map(author_of));
        let new = authors.zip(new.clone()).collect();
        self.carry_out(head, new, plan);
        let graph = &mut self.state.graph;
        graph.link(Edge { from: turn, to: summarised, kind: EdgeKind::Summarises });
        graph.link(Edge { from: first, to: turn, kind: EdgeKind::CompactedFrom });
        Ok(())
    }

    /// Ends the turn with the pending tokens.
    fn commit(&mut self, stop: StopReason) -> Decision {
        let mut pending = std::mem::take(&mut self.state.pending);
        if let Some(Span::Sampled(tokens)) = &mut pending.span {
            tokens.shrink_to_fit();
        }
        let ids = pending.ids().to_vec();
        let generation = std::mem::take(&mut self.state.generation);
        let prefill = std::mem::take(&mut self.state.prefill);
        let turn: Vec<TokenId> = prefill.iter().chain(&ids).copied().collect();
        let action = self.settings.renderer.parse(&turn, &self.state.tools);
        let forced = Some(prefill).filter(|ids| !ids.is_empty()).map(Span::Forced);
        let spans = [Some(Span::Scaffold(generation)), forced, pending.span];
        let node = Node {
            parent: self.state.leaf,
            author: Author::Policy,
            message: action.to_message(),
            spans: spans.into_iter().flatten().collect(),
        };
        let node = self.state.graph.push(node);
        self.state.leaf = Some(node);
        self.state.stop = stop;
        Decision { action, node, stop, engine: self.state.engine.clone() }
    }

    /// Ends the turn. A turn that sampled a summary is an aside.
    fn end_turn(&mut self, stop: StopReason) -> Result<Act, AgentError> {
        let decision = self.commit(stop);
        let Some(waiting) = self.state.waiting.take() else { return Ok(Act::Decided(decision)) };
        self.go_on_from(decision.node, decision.action.text.clone(), waiting)?;
        Ok(Act::Aside(decision))
    }
}

/// How a branch continues.
struct BranchPlan {
    /// The number of shared nodes.
    kept: usize,
    /// The tokens that are forced onto the last shared node.
    close: Vec<TokenId>,
    /// The spans of the nodes that are not shared, then of the new messages.
    messages: Vec<Vec<Span>>,
    generation: Vec<TokenId>,
    prefill: Vec<TokenId>,
}

impl BranchPlan {
    fn append(n_held: usize, n_new: usize, rendered: Rendered) -> Result<Self, AgentError> {
        let Rendered { close, messages, generation, prefill } = rendered;
        count(messages.len(), n_new)?;
        Ok(Self { kept: n_held, close, messages, generation, prefill })
    }

    /// Plans a fork. `held` has the ids of each node of the branch.
    fn fork(held: &[Vec<TokenId>], n_new: usize, rendered: Rendered) -> Result<Self, AgentError> {
        let Rendered { mut messages, generation, prefill, .. } = rendered;
        count(messages.len(), held.len() + n_new)?;
        let ids: Vec<Vec<TokenId>> = messages.iter().map(|spans| ids_of(spans)).collect();
        let mut kept = held.iter().zip(&ids).take_while(|(held, new)| held == new).count();
        let mut close = Vec::new();
        // The last node is shared too if it lacks only the close, which the policy did not sample.
        if kept + 1 == held.len()
            && let Some(rest) = ids[kept].strip_prefix(held[kept].as_slice())
        {
            close = rest.to_vec();
            kept += 1;
        }
        messages.drain(..kept);
        Ok(Self { kept, close, messages, generation, prefill })
    }

    /// Returns the number of tokens that the plan adds to those of the shared nodes.
    fn n_new(&self) -> usize {
        let said: usize = self.messages.iter().flatten().map(Span::len).sum();
        said + self.close.len() + self.generation.len() + self.prefill.len()
    }
}

fn count(n_rendered: usize, n_messages: usize) -> Result<(), AgentError> {
    if n_rendered == n_messages {
        return Ok(());
    }
    let message = format!("the renderer returned {n_rendered} messages for {n_messages}");
    Err(RenderError(message).into())
}

fn ids_of(spans: &[Span]) -> Vec<TokenId> {
    let mut ids = Vec::new();
    for span in spans {
        span.extend_ids(&mut ids);
    }
    ids
}

/// Returns the tokens of a message of the policy: forced and sampled tokens in the branch that sampled it, the tokens
/// that stand for them in a fork.
fn drawn_in(node: &Node) -> Option<Vec<TokenId>> {
    if node.author != Author::Policy || node.message.role != Role::Assistant {
        return None;
    }
    let was_drawn = node.sampled().next().is_some();
    let mut ids = Vec::new();
    for span in &node.spans {
        match span {
            Span::Sampled(_) | Span::Forced(_) if was_drawn => span.extend_ids(&mut ids),
            Span::Context(_) if !was_drawn => span.extend_ids(&mut ids),
            _ => {}
        }
    }
    Some(ids)
}

#[async_trait]
impl Agent for ChatAgent {
    fn observe(&mut self, observation: &Observation) -> Result<(), AgentError> {
        if let Some(request) = &observation.request {
            return self.observe_whole(&observation.messages, request);
        }
        let path = self.path();
        let is_first = self.state.graph.nodes().is_empty();
        let mut said = if is_first {
            self.settings.preface.before(observation).messages
        } else {
            observation.messages.clone()
        };
        let mut plan = self.plan(&path, &said)?;
        let shared = path[..plan.kept].iter();
        let n_shared: usize =
            shared.flat_map(|id| &self.state.graph.node(*id).spans).map(Span::len).sum();
        if self.is_too_long(n_shared + plan.n_new())
            && let Some(Compaction { prompt, .. }) = &self.settings.compaction
        {
            let prompt = vec![Message::user(prompt.clone())];
            plan = self.plan(&path, &prompt)?;
            self.state.waiting = Some(std::mem::replace(&mut said, prompt));
        }
        let new = said.into_iter().map(|message| (author_of(&message), message)).collect();
        self.carry_out(&path, new, plan);
        Ok(())
    }

    async fn act(&mut self, policy: &dyn Policy, room: Room) -> Result<Act, AgentError> {
        let room = Room { turn: self.state.end.shortened(room.turn, self.n_pending()), ..room };
        let mut used = 0;
        loop {
            let request = self.request(room, used);
            let sample = self.sample(policy, request.clone()).await?;
            check_sample(&sample, &request).map_err(AgentError::BadEngine)?;
            used += sample.tokens.len();
            let stop = sample.stop;
            let is_at_text = self.take(sample);
            // The token at which an engine is interrupted may be the one that fills the turn.
            let is_full = self.n_pending() >= room.turn;
            return Ok(match stop {
                _ if is_at_text => self.end_turn(StopReason::StopText)?,
                StopReason::EndOfTurn => self.end_turn(StopReason::EndOfTurn)?,
                _ if is_full => self.end_turn(StopReason::MaxTokens)?,
                StopReason::MaxTokens if used < room.now => continue,
                StopReason::MaxTokens | StopReason::Interrupted | StopReason::StopText => {
                    Act::Interrupted
                }
            });
        }
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
