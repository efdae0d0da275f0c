//! Conversations that arrive whole, from an agent program that keeps its own history.

use serde::{Deserialize, Serialize};
use turnwise_environment::{Message, Role, TurnRequest};
use turnwise_trajectory::{MessageGraph, NodeId, StopReason, TokenId};

use super::{ChatAgent, author_of};
use crate::{AgentError, Renderer};

/// What ends a turn, besides the run's limits and the model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TurnEnd {
    /// The most tokens.
    max_tokens: Option<usize>,
    /// Texts at which the turn ends.
    texts: Vec<String>,
}

/// The tokens that are sampled between two searches for a text at which a turn ends.
const SEARCHED: usize = 8;

impl TurnEnd {
    fn of(request: &TurnRequest) -> Self {
        let texts = request.stop.iter().filter(|text| !text.is_empty());
        Self { max_tokens: request.max_tokens, texts: texts.cloned().collect() }
    }

    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the length of a turn that may have `most` tokens and has `n_pending`.
    pub(super) fn shortened(&self, most: usize, n_pending: usize) -> usize {
        self.max_tokens.map_or(most, |limit| most.min(limit.max(n_pending + 1)))
    }

    /// Returns how many of `most` tokens to sample at once.
    pub(super) fn at_once(&self, most: usize) -> usize {
        if self.texts.is_empty() { most } else { most.min(SEARCHED) }
    }

    /// Returns the number of tokens up to the end of the first such text, which is complete with one of the tokens after
    /// the first `n_before`.
    pub(super) fn reached(
        &self,
        renderer: &dyn Renderer,
        ids: &[TokenId],
        n_before: usize,
    ) -> Option<usize> {
        if self.texts.is_empty() {
            return None;
        }
        let ends = |n: usize| {
            let said = renderer.text(&ids[..n]);
            self.texts.iter().any(|text| said.contains(text.as_str()))
        };
        (n_before + 1..=ids.len()).find(|n| ends(*n))
    }
}

impl ChatAgent {
    /// Continues the longest path that has the same messages with the others.
    pub(super) fn observe_whole(
        &mut self,
        messages: &[Message],
        request: &TurnRequest,
    ) -> Result<(), AgentError> {
        let path = longest_path(&self.state.graph, messages);
        let has_same_tools = self.state.tools == request.tools;
        self.state.tools.clone_from(&request.tools);
        self.state.end = TurnEnd::of(request);
        let new = &messages[path.len()..];
        let turn = path.last().map(|id| self.state.graph.node(*id));
        let last = turn.and_then(|node| node.sampled().last()).map(|token| token.id);
        let stop = match last {
            Some(id) if self.settings.renderer.stop_tokens().contains(&id) => StopReason::EndOfTurn,
            _ => StopReason::MaxTokens,
        };
        // Only after a sampled turn, and under the same tools, does a conversation go on where it was.
        let may_append = last.is_some() && has_same_tools && !new.is_empty();
        let plan = self.plan_after(&path, stop, new, may_append)?;
        let new = new.iter().map(|message| (author_of(message), message.clone())).collect();
        self.carry_out(&path, new, plan);
        Ok(())
    }
}

/// Returns the longest path whose messages begin a conversation; among several, the one with the most sampled turns, and
/// then the newest.
fn longest_path(graph: &MessageGraph, messages: &[Message]) -> Vec<NodeId> {
    // For each node, the length of the path to it and its number of sampled turns, if the path has the same messages.
    let mut matched: Vec<Option<(usize, usize)>> = Vec::with_capacity(graph.nodes().len());
    let mut best = None;
    for (id, node) in graph.ids().zip(graph.nodes()) {
        let before = match node.parent {
            None => Some((0, 0)),
            Some(parent) => matched[parent.0 as usize],
        };
        let here = before.filter(|(length, _)| {
            messages.get(*length).is_some_and(|message| is_same(message, &node.message))
        });
        let is_turn = node.sampled_spans().next().is_some();
        let here = here.map(|(length, turns)| (length + 1, turns + usize::from(is_turn)));
        if here.is_some() && best.is_none_or(|(most, _)| here >= most) {
            best = Some((here, id));
        }
        matched.push(here);
    }
    best.map_or_else(Vec::new, |(_, id)| graph.path_to(id))
}

/// Compares a message that came back with one in the graph. Programs drop thinking, and white space around a text.
fn is_same(said: &Message, held: &Message) -> bool {
    let calls = |message: &Message| -> Vec<(String, serde_json::Value)> {
        let each = message.tool_calls.iter();
        each.map(|call| (call.name.clone(), call.arguments.clone())).collect()
    };
    let is_text_same = match said.role {
        Role::Assistant => said.content.trim() == held.content.trim(),
        Role::System | Role::User | Role::Tool => said.content == held.content,
    };
    let has_same_thinking = said.reasoning.is_none() || said.reasoning == held.reasoning;
    said.role == held.role
        && is_text_same
        && has_same_thinking
        && said.tool_call_id == held.tool_call_id
        && calls(said) == calls(held)
}
