//! What an objective reads of one sequence.

use crate::ObjectiveError;

/// The trainable sampled tokens of one ratio group: all its turns, all its rows, in any order.
///
/// Three columns of length n_i, natural logarithms. There is no mask: a token that must not train
/// (a tool's, a user's, a template's, a stale one) is not here, so nothing it holds can matter. The
/// behaviour log-probability of a token is the one it was drawn with, whichever weights drew it.
///
/// ```
/// use turnwise_objective::{Advantages, Sequence};
///
/// let logprobs = [-0.9, -1.1, -0.2];
/// let behavior_logprobs = [-1.0, -1.0, -0.2];
/// let sequence = Sequence::new(&logprobs, &behavior_logprobs, Advantages::Uniform(1.5))?;
/// assert_eq!(sequence.len(), 3);
/// # Ok::<(), turnwise_objective::ObjectiveError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    logprobs: &'a [f64],
    behavior_logprobs: &'a [f64],
    advantages: Advantages<'a>,
}

/// The advantage A of each token of a sequence, in units of (normalised) reward.
#[derive(Clone, Copy, Debug)]
pub enum Advantages<'a> {
    /// One for the whole sequence.
    Uniform(f64),
    /// One for each token: the credit of its turn, for example.
    PerToken(&'a [f64]),
}

impl<'a> Sequence<'a> {
    /// A sequence of `logprobs.len()` tokens: log π_θ(y_t), log π_b(y_t) and A_t.
    ///
    /// # Errors
    ///
    /// [`ObjectiveError::LengthMismatch`] unless all columns have the same length. Values are
    /// checked when an objective reads them.
    pub fn new(
        logprobs: &'a [f64],
        behavior_logprobs: &'a [f64],
        advantages: Advantages<'a>,
    ) -> Result<Self, ObjectiveError> {
        expect_length("behavior_logprobs", logprobs.len(), behavior_logprobs.len())?;
        if let Advantages::PerToken(advantages) = advantages {
            expect_length("advantages", logprobs.len(), advantages.len())?;
        }
        Ok(Self { logprobs, behavior_logprobs, advantages })
    }

    /// The number of tokens, n_i.
    #[must_use]
    pub fn len(&self) -> usize {
        self.logprobs.len()
    }

    /// Whether no token of the sequence trains; it then adds nothing and does not count.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.logprobs.is_empty()
    }

    /// log π_θ(y_t) under the policy that is being trained.
    #[must_use]
    pub fn logprobs(&self) -> &'a [f64] {
        self.logprobs
    }

    /// log π_b(y_t) under the policy that drew the token.
    #[must_use]
    pub fn behavior_logprobs(&self) -> &'a [f64] {
        self.behavior_logprobs
    }

    /// A_t.
    #[must_use]
    pub fn advantages(&self) -> Advantages<'a> {
        self.advantages
    }

    /// The first advantage that is not finite, as an error.
    pub(crate) fn expect_finite_advantages(&self) -> Result<(), ObjectiveError> {
        let (token, value) = match self.advantages {
            Advantages::Uniform(advantage) => (0, advantage),
            Advantages::PerToken(advantages) => {
                match advantages.iter().position(|advantage| !advantage.is_finite()) {
                    Some(token) => (token, advantages[token]),
                    None => return Ok(()),
                }
            }
        };
        if value.is_finite() {
            Ok(())
        } else {
            Err(ObjectiveError::NonFinite { quantity: "advantage", token, value })
        }
    }
}

/// An error unless a slice has one entry per token.
pub(crate) fn expect_length(
    slice: &'static str,
    expected: usize,
    actual: usize,
) -> Result<(), ObjectiveError> {
    if actual == expected {
        Ok(())
    } else {
        Err(ObjectiveError::LengthMismatch { slice, expected, actual })
    }
}
