//! The tokens of a message graph, branch after branch, with their properties.

use std::collections::HashMap;
use turnwise_run::form::Texts;

use serde::Serialize;
use turnwise_environment::Role;
use turnwise_trajectory::{
    Author, MaskReason, MessageGraph, NodeId, PolicyVersion, SampledToken, Span, TokenId,
    TokenKind, Turn,
};

/// A token with its properties. A property that a token cannot have is absent, never 0.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Shown {
    pub(super) branch: usize,
    /// The branch with the tokens before this branch's first.
    pub(super) parent_branch: Option<usize>,
    /// The position in the branch, shared tokens included.
    pub(super) position: usize,
    pub(super) id: TokenId,
    /// The text of the token alone, with U+FFFD for a part of a character; `None` for an unused id.
    pub(super) text: Option<String>,
    /// Whether it is an added token: a role marker, a tag.
    pub(super) control: bool,
    pub(super) kind: TokenKind,
    /// The index of its message.
    pub(super) message: usize,
    pub(super) role: Role,
    pub(super) author: Author,
    pub(super) turn: Option<usize>,
    pub(super) logprob: Option<f32>,
    pub(super) version: Option<PolicyVersion>,
    pub(super) kv_version: Option<PolicyVersion>,
    pub(super) trains: bool,
    /// The reason that it does not train.
    pub(super) mask: Option<Mask>,
    pub(super) advantage: Option<f32>,
}

/// A reason that a token does not train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mask {
    /// The policy did not sample it.
    NotSampled,
    /// Another speaker wrote it instead of the policy.
    Fabricated,
    /// It was sampled and masked.
    #[serde(untagged)]
    Drawn(MaskReason),
}

/// The messages that a branch does not share with an older one, and its start.
#[derive(Debug)]
pub(super) struct Branch {
    pub(super) number: usize,
    pub(super) parent: Option<usize>,
    /// The number of tokens that it shares with its parent.
    pub(super) n_shared: usize,
    pub(super) messages: Vec<ShownMessage>,
}

/// A message's tokens.
#[derive(Debug)]
pub(super) struct ShownMessage {
    pub(super) number: usize,
    pub(super) role: Role,
    pub(super) author: Author,
    /// A description of its turn.
    pub(super) turn: Option<String>,
    pub(super) tokens: Vec<Shown>,
}

impl Branch {
    pub(super) fn tokens(&self) -> impl Iterator<Item = &Shown> {
        self.messages.iter().flat_map(|message| &message.tokens)
    }
}

/// The turns of a trajectory, by node: number and description.
#[derive(Debug, Default)]
pub(super) struct Turns(HashMap<NodeId, (usize, String)>);

impl Turns {
    pub(super) fn new(turns: &[Turn]) -> Self {
        let turns = turns.iter().enumerate().map(|(number, turn)| {
            let reward = turn
                .reward
                .map_or_else(|| "not scored".to_owned(), |reward| format!("reward {reward}"));
            (turn.node, (number, format!("turn {number}, {reward}")))
        });
        Self(turns.collect())
    }
}

/// Returns every branch, oldest first. A message that two branches share is in the older one.
pub(super) fn shown(graph: &MessageGraph, turns: &Turns, texts: &Texts) -> Vec<Branch> {
    let mut branch_of: HashMap<NodeId, usize> = HashMap::new();
    let mut branches = Vec::new();
    for (number, leaf) in graph.leaves().into_iter().enumerate() {
        let path = graph.path_to(leaf);
        let n_known = path.iter().take_while(|id| branch_of.contains_key(id)).count();
        let (known, new) = path.split_at(n_known);
        let parent = known.last().map(|last| branch_of[last]);
        let n_shared = known.iter().flat_map(|id| &graph.node(*id).spans).map(Span::len).sum();
        let mut branch = Branch { number, parent, n_shared, messages: Vec::new() };
        let mut position = n_shared;
        for id in new {
            branch_of.insert(*id, number);
            let message = shown_message(graph, *id, turns, texts, &branch, position);
            position += message.tokens.len();
            branch.messages.push(message);
        }
        branches.push(branch);
    }
    branches
}

fn shown_message(
    graph: &MessageGraph,
    id: NodeId,
    turns: &Turns,
    texts: &Texts,
    branch: &Branch,
    start: usize,
) -> ShownMessage {
    let node = graph.node(id);
    let turn = turns.0.get(&id);
    let blank = |kind: TokenKind, token: TokenId| Shown {
        branch: branch.number,
        parent_branch: branch.parent,
        position: 0,
        id: token,
        text: texts.text(token),
        control: texts.is_control(token),
        kind,
        message: id.0 as usize,
        role: node.message.role,
        author: node.author,
        turn: turn.map(|(number, _)| *number),
        logprob: None,
        version: None,
        kv_version: None,
        trains: false,
        mask: Some(not_drawn(kind, node.author)),
        advantage: None,
    };
    let mut tokens = Vec::new();
    for span in &node.spans {
        match span {
            Span::Context(ids) | Span::Scaffold(ids) | Span::Forced(ids) => {
                tokens.extend(ids.iter().map(|token| blank(span.kind(), *token)));
            }
            Span::Sampled(drawn) => tokens.extend(
                drawn.iter().map(|token| drawn_token(&token, blank(span.kind(), token.id))),
            ),
        }
    }
    for (place, token) in tokens.iter_mut().enumerate() {
        token.position = start + place;
    }
    ShownMessage {
        number: id.0 as usize,
        role: node.message.role,
        author: node.author,
        turn: turn.map(|(_, description)| description.clone()),
        tokens,
    }
}

fn not_drawn(kind: TokenKind, author: Author) -> Mask {
    match (kind, author) {
        (TokenKind::Context, Author::Fabricated) => Mask::Fabricated,
        _ => Mask::NotSampled,
    }
}

fn drawn_token(token: &SampledToken, blank: Shown) -> Shown {
    Shown {
        logprob: Some(token.logprob),
        version: Some(token.version),
        kv_version: Some(token.kv_version),
        trains: token.trains(),
        mask: token.mask.map(Mask::Drawn),
        advantage: token.advantage,
        ..blank
    }
}
