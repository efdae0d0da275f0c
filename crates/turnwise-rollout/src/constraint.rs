use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use turnwise_trajectory::TokenId;

use crate::Sample;

/// What may be drawn: a grammar, a schema, a list of answers.
///
/// # Contract
///
/// - [`allowed`](Self::allowed) is a function of its argument alone: an engine may ask again, from any thread, and in another
///   order than it draws.
/// - It is quick: an engine asks between two tokens, and everybody waits.
/// - What it forbids has probability 0. The log-probability of a token is that of the distribution that is left, which is not
///   the model's: such tokens train with the set they were drawn from on record
///   ([`SampledTokens::push_kept`](turnwise_trajectory::SampledTokens::push_kept)), or not at all.
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
    /// The ids of which the next token must be one, in rising order, when these have been drawn of the turn; `None` when it may
    /// be any. A request fails where none are allowed.
    fn allowed(&self, drawn: &[TokenId]) -> Option<Vec<TokenId>>;
}

/// A token must go on with one of some answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    next: BTreeMap<TokenId, Answers>,
}

impl Answers {
    /// Answers token by token, each with what ends it: behind an answer nothing is allowed but a longer one.
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
    fn allowed(&self, drawn: &[TokenId]) -> Option<Vec<TokenId>> {
        let node = drawn.iter().try_fold(self, |node, id| node.next.get(id));
        Some(node.map_or_else(Vec::new, |node| node.next.keys().copied().collect()))
    }
}

/// A constraint on a turn of which some tokens were drawn by earlier requests, before it was interrupted.
#[derive(Clone, Debug)]
pub struct Continued {
    /// The constraint on the whole turn.
    pub constraint: Arc<dyn TokenConstraint>,
    /// What was drawn of it.
    pub before: Vec<TokenId>,
}

impl TokenConstraint for Continued {
    fn allowed(&self, drawn: &[TokenId]) -> Option<Vec<TokenId>> {
        self.constraint.allowed(&[&self.before, drawn].concat())
    }
}

/// What an engine drew under a constraint.
#[derive(Clone, Debug, PartialEq)]
pub struct ConstrainedSample {
    /// The tokens, with the log-probabilities of what the constraint left.
    pub sample: Sample,
    /// For each token the ids it was drawn from, the only ones with a probability; an empty set stands for the whole
    /// vocabulary.
    pub kept: Vec<Vec<TokenId>>,
}
