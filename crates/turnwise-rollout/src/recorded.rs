use async_trait::async_trait;
use turnwise_trajectory::{
    Node, NodeId, PolicyVersion, SampledToken, Span, StopReason, TokenId, Trajectory,
};

use crate::{Policy, PolicyError, Sample, SampleRequest};

/// A policy that answers from a recorded trajectory: its ids, log-probabilities and versions, without weights or an
/// engine.
///
/// A request is answered if it is a recorded one, also if it is cut differently: the token with its index was sampled
/// after the same prompt, with the same seed and settings. Any other request is refused with a [`Divergence`], so an
/// episode that runs on such a policy is the recorded one, or stops at the first token whose request differs.
///
/// Masks and credit are not part of the answer, because they were added to the tokens later.
#[derive(Clone, Debug)]
pub struct RecordedPolicy {
    trajectory: Trajectory,
    /// The nodes with sampled tokens, oldest first, each with the index of its first token.
    drawn: Vec<(u64, NodeId)>,
    n_drawn: u64,
}

impl RecordedPolicy {
    /// Creates a policy that samples the tokens of this trajectory.
    #[must_use]
    pub fn new(trajectory: Trajectory) -> Self {
        let mut drawn = Vec::new();
        let mut n_drawn = 0;
        for id in trajectory.graph.ids() {
            let n = trajectory.graph.node(id).sampled().count() as u64;
            if n > 0 {
                drawn.push((n_drawn, id));
                n_drawn += n;
            }
        }
        Self { trajectory, drawn, n_drawn }
    }

    fn answer(&self, request: &SampleRequest) -> Result<Sample, Divergence> {
        let index = request.first_index;
        let turn = self.drawn.partition_point(|(first, _)| *first <= index).checked_sub(1);
        let Some(turn) = turn.filter(|_| index < self.n_drawn) else {
            return Err(Divergence::Over { index, n_drawn: self.n_drawn });
        };
        let (first, id) = self.drawn[turn];
        let node = self.trajectory.graph.node(id);
        let before = (index - first) as usize;
        self.compare(request, id, before)?;
        let kept = kept_of(node, before, request.max_tokens);
        let rest = node.sampled().skip(before);
        let tokens: Vec<SampledToken> = rest.take(request.max_tokens).map(as_drawn).collect();
        let n_left = node.sampled().count() - before;
        let (stop, engine) = self.end(id);
        let stop = if n_left > request.max_tokens { StopReason::MaxTokens } else { stop };
        if stop == StopReason::MaxTokens && tokens.len() < request.max_tokens {
            let n_asked = request.max_tokens;
            return Err(Divergence::Room { index, n_left, n_asked });
        }
        Ok(Sample { tokens, kept, stop, engine })
    }

    /// Checks that the token after the first `before` of a node was sampled for this seed, these settings and this
    /// prompt.
    fn compare(
        &self,
        request: &SampleRequest,
        id: NodeId,
        before: usize,
    ) -> Result<(), Divergence> {
        let index = request.first_index;
        let (node, identity) = (self.trajectory.graph.node(id), &self.trajectory.identity);
        if request.seed != identity.sampling_seed {
            return Err(Divergence::Seed { asked: request.seed, recorded: identity.sampling_seed });
        }
        let next = node.sampled().nth(before).expect("the index is of a token of this node");
        if self.trajectory.sampling.get(usize::from(next.sampling)) != Some(&request.sampling) {
            return Err(Divergence::Sampling { index });
        }
        let recorded = self.prompt(node, before);
        if recorded == request.prompt {
            return Ok(());
        }
        let same = recorded.iter().zip(&request.prompt).take_while(|(a, b)| a == b).count();
        Err(Divergence::Prompt { index, position: same })
    }

    /// Returns the prompt of a node's sampled tokens, followed by the first `n` of them.
    fn prompt(&self, node: &Node, n: usize) -> Vec<TokenId> {
        let graph = &self.trajectory.graph;
        let mut prompt = node.parent.map_or_else(Vec::new, |parent| graph.ids_to(parent));
        let lead_in = node.spans.iter().take_while(|span| !matches!(span, Span::Sampled(_)));
        lead_in.for_each(|span| span.extend_ids(&mut prompt));
        prompt.extend(node.sampled().take(n).map(|token| token.id));
        prompt
    }

    /// Returns the reason why sampling stopped at a node, and the engine; a node without a turn was abandoned in the
    /// middle.
    fn end(&self, id: NodeId) -> (StopReason, String) {
        let turn = self.trajectory.turns.iter().find(|turn| turn.node == id);
        turn.map_or((StopReason::Interrupted, String::new()), |turn| {
            (turn.stop, turn.engine.clone())
        })
    }
}

/// Returns the kept ids of the sampled tokens of a node, from `start` on and at most `n`; no sets if all are empty.
fn kept_of(node: &Node, start: usize, n: usize) -> Vec<Vec<TokenId>> {
    let all: Vec<Option<&[TokenId]>> = node
        .sampled_spans()
        .flat_map(|tokens| (0..tokens.len()).map(move |index| tokens.kept(index)))
        .skip(start)
        .take(n)
        .collect();
    if all.iter().all(Option::is_none) {
        return Vec::new();
    }
    all.into_iter().map(|kept| kept.unwrap_or_default().to_vec()).collect()
}

/// Returns a token without its mask and credit.
fn as_drawn(token: SampledToken) -> SampledToken {
    SampledToken { sampling: 0, mask: None, advantage: None, ..token }
}

#[async_trait]
impl Policy for RecordedPolicy {
    /// Returns the newest version of the record.
    fn version(&self) -> PolicyVersion {
        self.trajectory.sampled().map(|token| token.version).max().unwrap_or_default()
    }

    async fn sample(&self, request: SampleRequest) -> Result<Sample, PolicyError> {
        self.answer(&request).map_err(PolicyError::Diverged)
    }
}

/// The first difference between a request and the record. Tokens are counted over the whole episode, from 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Divergence {
    /// The record ends before the token.
    #[error("token {index} is requested, and the record has {n_drawn} tokens")]
    Over {
        /// The index of the token.
        index: u64,
        /// The number of tokens of the record.
        n_drawn: u64,
    },
    /// The prompt of the token differs.
    #[error("the prompt of token {index} differs from position {position} on")]
    Prompt {
        /// The index of the token.
        index: u64,
        /// The first position at which the prompts differ.
        position: usize,
    },
    /// The request belongs to another episode.
    #[error("the seed of the request is {asked}, and the record's is {recorded}")]
    Seed {
        /// The request's seed.
        asked: u64,
        /// The record's seed.
        recorded: u64,
    },
    /// The token would be sampled from another distribution.
    #[error("the sampling settings of token {index} differ")]
    Sampling {
        /// The index of the token.
        index: u64,
    },
    /// A limit closed the recorded turn, and the request has room for more.
    #[error(
        "{n_asked} tokens are requested from token {index} on, and the recorded turn was closed after {n_left}"
    )]
    Room {
        /// The index of the first requested token.
        index: u64,
        /// The number of tokens that the turn has from there on.
        n_left: usize,
        /// The number of requested tokens.
        n_asked: usize,
    },
}
