use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use turnwise_trajectory::TokenId;

/// A constraint on the next token: a grammar, a schema, a list of answers.
///
/// # Contract
///
/// - [`allowed`](Self::allowed) is a pure function: an engine may call it again, from any thread, and in another order
///   than it samples.
/// - It is fast: an engine calls it between two tokens, and every request of the batch waits.
/// - A forbidden token has probability 0. The log-probability of a token is that of the remaining distribution: the
///   engine returns the allowed ids with each token ([`Sample::kept`](crate::Sample::kept)), and the trainer computes
///   its softmax over them.
///
/// ```
/// use turnwise_rollout::{Answers, TokenConstraint};
///
/// // Yes (1) or no (2, 3), each with the token that ends a turn.
/// let answers = Answers::new([vec![1, 9], vec![2, 3, 9]]);
/// assert_eq!(answers.allowed(&[]), Some(vec![1, 2]));
/// assert_eq!(answers.allowed(&[2]), Some(vec![3]));
/// assert_eq!(answers.allowed(&[7]), Some(vec![]));
/// ```
pub trait TokenConstraint: fmt::Debug + Send + Sync {
    /// Returns the allowed ids of the next token in ascending order, given the tokens sampled in the turn; `None`
    /// allows any token. A request fails if no id is allowed.
    fn allowed(&self, sampled: &[TokenId]) -> Option<Vec<TokenId>>;
}

/// A constraint that allows only a list of answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    next: BTreeMap<TokenId, Answers>,
}

impl Answers {
    /// Creates a constraint from answers as token ids, each with the token that ends it. After a complete answer, only
    /// the continuation of a longer one is allowed.
    #[must_use]
    pub fn new(answers: impl IntoIterator<Item = Vec<TokenId>>) -> Self {
        let mut root = Self::default();
        for answer in answers {
            let mut node = &mut root;
            for id in answer {
                node = node.next.entry(id).or_default();
            }
        }
        root
    }
}

impl TokenConstraint for Answers {
    fn allowed(&self, sampled: &[TokenId]) -> Option<Vec<TokenId>> {
        let node = sampled.iter().try_fold(self, |node, id| node.next.get(id));
        Some(node.map_or_else(Vec::new, |node| node.next.keys().copied().collect()))
    }
}

/// A constraint on a turn whose first tokens were sampled by earlier, interrupted requests.
#[derive(Clone, Debug)]
pub struct Continued {
    /// The constraint on the whole turn.
    pub constraint: Arc<dyn TokenConstraint>,
    /// The tokens that the earlier requests sampled.
    pub before: Vec<TokenId>,
}

impl TokenConstraint for Continued {
    fn allowed(&self, sampled: &[TokenId]) -> Option<Vec<TokenId>> {
        self.constraint.allowed(&[&self.before, sampled].concat())
    }
}

/// Several constraints, of which the first that restricts a token decides alone.
#[derive(Clone, Debug, Default)]
pub struct FirstOf(pub Vec<Arc<dyn TokenConstraint>>);

impl TokenConstraint for FirstOf {
    fn allowed(&self, sampled: &[TokenId]) -> Option<Vec<TokenId>> {
        self.0.iter().find_map(|constraint| constraint.allowed(sampled))
    }
}
