use std::collections::BTreeMap;

use turnwise_trajectory::TokenId;

/// One branch laid out for a learner: storage only. How a trajectory is cut into rows changes neither loss nor gradient.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// The tokens from the root to the leaf. `[T]`
    pub ids: Vec<TokenId>,
    /// The tokens whose log-probability is wanted, in order of position. `[N]`
    pub targets: Vec<Target>,
    /// For targets that were drawn from a truncated distribution, by their number: the ids that truncation kept, over which
    /// alone the softmax runs. Each set holds its target.
    pub kept: BTreeMap<usize, Vec<TokenId>>,
}

/// A token of a row whose log-probability is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Where it stands in the row's ids; at least 1, because a first token has nothing before it.
    pub position: usize,
    /// What the logits are divided by, as when it was drawn.
    pub temperature: f32,
}
