use serde::{Deserialize, Serialize};
use turnwise_environment::Message;

use crate::{SampledToken, SampledTokens, TokenId, TokenKind};

/// Identifies a node of a message graph. Nodes are numbered in the order they are added, so a parent's number is
/// smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u32);

/// The author of a node, separate from the message's role: assistant text that the policy did not sample never trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Author {
    /// The policy, by sampling.
    Policy,
    /// The environment.
    Environment,
    /// A tool.
    Tool,
    /// The system prompt.
    System,
    /// A stand-in for the policy: a few-shot example, a person, another model.
    Fabricated,
}

/// Consecutive tokens of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Span {
    /// Text addressed to the policy.
    Context(Vec<TokenId>),
    /// Tokens that the template adds.
    Scaffold(Vec<TokenId>),
    /// Assistant tokens that the policy did not sample, such as a prefill.
    Forced(Vec<TokenId>),
    /// Tokens that the policy sampled.
    Sampled(SampledTokens),
}

impl Span {
    /// Returns the kind of the span's tokens.
    #[must_use]
    pub fn kind(&self) -> TokenKind {
        match self {
            Self::Context(_) => TokenKind::Context,
            Self::Scaffold(_) => TokenKind::Scaffold,
            Self::Forced(_) => TokenKind::Forced,
            Self::Sampled(_) => TokenKind::Sampled,
        }
    }

    /// Returns the number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Context(ids) | Self::Scaffold(ids) | Self::Forced(ids) => ids.len(),
            Self::Sampled(tokens) => tokens.len(),
        }
    }

    /// Returns whether the span has no tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the span's token ids to `ids`.
    pub fn extend_ids(&self, ids: &mut Vec<TokenId>) {
        match self {
            Self::Context(own) | Self::Scaffold(own) | Self::Forced(own) => {
                ids.extend_from_slice(own);
            }
            Self::Sampled(tokens) => ids.extend_from_slice(tokens.ids()),
        }
    }
}

/// A message and the tokens it added.
///
/// The tokens are a *delta*: concatenated from the root to a leaf, they are the prompt that the engine read plus the
/// tokens that it sampled. The template's lead-in to a message belongs to that message's node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// The preceding node; `None` for a root.
    pub parent: Option<NodeId>,
    /// The author of the message.
    pub author: Author,
    /// The message as text.
    pub message: Message,
    /// The tokens that the message adds, in order.
    pub spans: Vec<Span>,
}

impl Node {
    /// Iterates over the node's sampled tokens in order, by value.
    pub fn sampled(&self) -> impl Iterator<Item = SampledToken> + '_ {
        self.sampled_spans().flat_map(SampledTokens::iter)
    }

    /// Iterates over the node's sampled spans in order.
    pub fn sampled_spans(&self) -> impl Iterator<Item = &SampledTokens> {
        self.spans.iter().filter_map(|span| match span {
            Span::Sampled(tokens) => Some(tokens),
            _ => None,
        })
    }

    /// Iterates over the node's sampled spans mutably, to score or mask them.
    pub fn sampled_mut(&mut self) -> impl Iterator<Item = &mut SampledTokens> {
        self.spans.iter_mut().filter_map(|span| match span {
            Span::Sampled(tokens) => Some(tokens),
            _ => None,
        })
    }
}

/// A relation between nodes other than parent and child. Credit may flow along an edge; tokens do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EdgeKind {
    /// `from` begins a branch whose context is a compaction of the history up to `to`.
    CompactedFrom,
    /// `from` is a summary of `to`.
    Summarises,
}

/// A typed edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// The later node.
    pub from: NodeId,
    /// The earlier node.
    pub to: NodeId,
    /// The relation between the two nodes.
    pub kind: EdgeKind,
}

/// The messages of a trajectory: an append-only forest in which every root-to-leaf path is a branch.
///
/// ```
/// use turnwise_environment::Message;
/// use turnwise_trajectory::{Author, MessageGraph, Node, Span};
///
/// let mut graph = MessageGraph::default();
/// let question = graph.push(Node {
///     parent: None,
///     author: Author::Environment,
///     message: Message::user("Guess 1-40."),
///     spans: vec![Span::Scaffold(vec![1]), Span::Context(vec![7, 8])],
/// });
/// assert_eq!(graph.ids_to(question), [1, 7, 8]);
/// assert_eq!(graph.leaves(), [question]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MessageGraph {
    nodes: Vec<Node>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    edges: Vec<Edge>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    shortened: Vec<NodeId>,
}

impl MessageGraph {
    /// Appends a node and returns its id.
    ///
    /// # Panics
    /// Panics if the node's parent is not in the graph.
    pub fn push(&mut self, node: Node) -> NodeId {
        assert!(
            node.parent.is_none_or(|parent| (parent.0 as usize) < self.nodes.len()),
            "the parent must be in the graph"
        );
        self.nodes.push(node);
        NodeId(self.nodes.len() as u32 - 1)
    }

    /// Adds a typed edge.
    ///
    /// # Panics
    /// Panics if an end of the edge is not in the graph.
    pub fn link(&mut self, edge: Edge) {
        assert!(
            self.contains(edge.from) && self.contains(edge.to),
            "both ends must be in the graph"
        );
        self.edges.push(edge);
    }

    /// Records that the model saw only a part of a node's message. A copy of the message on a later branch is not
    /// recorded again.
    ///
    /// # Panics
    /// Panics if the node is not in the graph, or is not later than the nodes recorded before.
    pub fn mark_shortened(&mut self, id: NodeId) {
        let is_later = self.shortened.last().is_none_or(|last| *last < id);
        assert!(self.contains(id) && is_later, "the node must be in the graph, and a later one");
        self.shortened.push(id);
    }

    /// Returns the nodes of the messages that the renderer shortened, oldest first; each message once.
    #[must_use]
    pub fn shortened(&self) -> &[NodeId] {
        &self.shortened
    }

    /// Returns all nodes, oldest first.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Returns the typed edges.
    #[must_use]
    pub fn edges(&self) -> &[Edge] {
        &self.edges
    }

    /// Returns a node.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// Returns a node mutably, to append spans or to score its tokens.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }

    /// Iterates over the ids of all nodes, oldest first.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }

    /// Returns the path from the root to a node, both included.
    #[must_use]
    pub fn path_to(&self, leaf: NodeId) -> Vec<NodeId> {
        let mut path: Vec<NodeId> =
            std::iter::successors(Some(leaf), |id| self.node(*id).parent).collect();
        path.reverse();
        path
    }

    /// Returns the token ids from the root to the end of a node.
    #[must_use]
    pub fn ids_to(&self, leaf: NodeId) -> Vec<TokenId> {
        let mut ids = Vec::new();
        for id in self.path_to(leaf) {
            self.node(id).spans.iter().for_each(|span| span.extend_ids(&mut ids));
        }
        ids
    }

    /// Returns the nodes without children, oldest first. Each is the end of one branch.
    #[must_use]
    pub fn leaves(&self) -> Vec<NodeId> {
        let mut is_leaf = vec![true; self.nodes.len()];
        for parent in self.nodes.iter().filter_map(|node| node.parent) {
            is_leaf[parent.0 as usize] = false;
        }
        self.ids().filter(|id| is_leaf[id.0 as usize]).collect()
    }

    /// Checks the invariants that deserialisation cannot enforce.
    ///
    /// # Errors
    /// If a parent or an edge does not point to an earlier node, a node by another author than the policy has sampled
    /// tokens, a sampled token's log-probability is not a finite number of at most 0, or the shortened nodes are not
    /// ascending nodes of the graph.
    pub fn validate(&self) -> Result<(), GraphError> {
        for id in self.ids() {
            let node = self.node(id);
            if node.parent.is_some_and(|parent| parent >= id) {
                return Err(GraphError::Parent { node: id });
            }
            if node.author != Author::Policy
                && node.sampled_spans().any(|tokens| !tokens.is_empty())
            {
                return Err(GraphError::SampledByOther { node: id });
            }
            let mut logprobs = node.sampled_spans().flat_map(SampledTokens::logprobs);
            if logprobs.any(|logprob| !(logprob.is_finite() && *logprob <= 0.0)) {
                return Err(GraphError::Logprob { node: id });
            }
        }
        let is_later = |pair: &[NodeId]| pair[0] < pair[1];
        let last = self.shortened.last().filter(|last| !self.contains(**last));
        if last.is_some() || !self.shortened.windows(2).all(is_later) {
            return Err(GraphError::Shortened);
        }
        match self.edges.iter().find(|edge| !self.contains(edge.from) || edge.to >= edge.from) {
            Some(edge) => Err(GraphError::Edge { edge: *edge }),
            None => Ok(()),
        }
    }

    fn contains(&self, id: NodeId) -> bool {
        (id.0 as usize) < self.nodes.len()
    }
}

/// A violated invariant of a message graph.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum GraphError {
    /// A parent that is not an earlier node.
    #[error("node {} has a parent that does not precede it", node.0)]
    Parent {
        /// The child.
        node: NodeId,
    },
    /// Sampled tokens in a node that the policy did not write.
    #[error("node {} has sampled tokens, but its author is not the policy", node.0)]
    SampledByOther {
        /// The node.
        node: NodeId,
    },
    /// A log-probability that is not a finite number of at most 0.
    #[error("node {} has a log-probability that is not a finite number of at most 0", node.0)]
    Logprob {
        /// The node.
        node: NodeId,
    },
    /// A list of shortened nodes that has a node outside the graph, or is not ascending.
    #[error("the shortened nodes are not ascending nodes of the graph")]
    Shortened,
    /// An edge whose target is not an earlier node.
    #[error("the edge from node {} to node {} does not point to an earlier node", edge.from.0, edge.to.0)]
    Edge {
        /// The edge.
        edge: Edge,
    },
}
