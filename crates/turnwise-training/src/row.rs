use std::collections::BTreeMap;

use turnwise_trajectory::TokenId;

/// One branch laid out for a learner, as storage only: the cut of a trajectory into rows changes neither loss nor
/// gradient.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// The tokens from the root to the leaf. `[T]`
    pub ids: Vec<TokenId>,
    /// The tokens whose log-probability is needed, in order of position. `[N]`
    pub targets: Vec<Target>,
    /// The ids that truncation kept, for each target that was sampled from a truncated distribution, by its index; the
    /// softmax runs over these ids alone. Each set holds its target.
    pub kept: BTreeMap<usize, Vec<TokenId>>,
}

/// A token of a row whose log-probability is needed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// The position in the row's ids; at least 1, because the first token has no context.
    pub position: usize,
    /// The temperature that divides the logits, as at sampling time.
    pub temperature: f32,
}
