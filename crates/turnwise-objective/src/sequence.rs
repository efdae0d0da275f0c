//! The input of an objective for one sequence.

use std::ops::Range;

use crate::ObjectiveError;

/// The trainable sampled tokens of one ratio group: all its turns, all its rows, in any order.
///
/// A sequence has three columns of length n_i, with natural logarithms, and two columns that some
/// objectives need: the reference policy's log-probabilities and the lengths of the turns. There is
/// no mask: a token that must not train (of a tool, a user or a template, or a stale one) is left
/// out, so its values cannot matter. The behaviour log-probability of a token is the one recorded
/// at sampling time, under the weights that sampled the token.
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
    reference_logprobs: Option<&'a [f64]>,
    turns: Option<&'a [usize]>,
}

/// The advantage A of each token of a sequence, in units of (normalised) reward.
#[derive(Clone, Copy, Debug)]
pub enum Advantages<'a> {
    /// One advantage for the whole sequence.
    Uniform(f64),
    /// One advantage for each token: the credit of its turn, for example.
    PerToken(&'a [f64]),
}

impl<'a> Sequence<'a> {
    /// Creates a sequence of `logprobs.len()` tokens: log π_θ(y_t), log π_b(y_t) and A_t.
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
        Ok(Self { logprobs, behavior_logprobs, advantages, reference_logprobs: None, turns: None })
    }

    /// Adds log π_ref(y_t) of each token, for a KL term.
    ///
    /// # Errors
    ///
    /// [`ObjectiveError::LengthMismatch`] unless there is one per token.
    pub fn with_reference(self, reference_logprobs: &'a [f64]) -> Result<Self, ObjectiveError> {
        expect_length("reference_logprobs", self.len(), reference_logprobs.len())?;
        Ok(Self { reference_logprobs: Some(reference_logprobs), ..self })
    }

    /// Adds the number of tokens of each turn, for a ratio per turn. The tokens must be in the
    /// order of the turns. A turn may have no tokens.
    ///
    /// # Errors
    ///
    /// [`ObjectiveError::LengthMismatch`] unless the turns together have the sequence's tokens.
    ///
    /// ```
    /// use turnwise_objective::{Advantages, Sequence};
    ///
    /// let sequence = Sequence::new(&[-0.5; 3], &[-0.5; 3], Advantages::Uniform(1.0))?;
    /// assert_eq!(sequence.with_turns(&[2, 1])?.turns(), Some(&[2, 1][..]));
    /// assert!(sequence.with_turns(&[2, 2]).is_err());
    /// # Ok::<(), turnwise_objective::ObjectiveError>(())
    /// ```
    pub fn with_turns(self, turns: &'a [usize]) -> Result<Self, ObjectiveError> {
        expect_length("turns", self.len(), turns.iter().sum())?;
        Ok(Self { turns: Some(turns), ..self })
    }

    /// Replaces the advantages, for example by [`weighted`](crate::weighted) ones.
    ///
    /// # Errors
    ///
    /// [`ObjectiveError::LengthMismatch`] unless there is one per token.
    pub fn with_advantages(self, advantages: Advantages<'a>) -> Result<Self, ObjectiveError> {
        if let Advantages::PerToken(advantages) = advantages {
            expect_length("advantages", self.len(), advantages.len())?;
        }
        Ok(Self { advantages, ..self })
    }

    /// Returns the number of tokens, n_i.
    #[must_use]
    pub fn len(&self) -> usize {
        self.logprobs.len()
    }

    /// Returns whether the sequence has no tokens; such a sequence adds 0 and does not count.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.logprobs.is_empty()
    }

    /// Returns log π_θ(y_t) under the policy that is being trained.
    #[must_use]
    pub fn logprobs(&self) -> &'a [f64] {
        self.logprobs
    }

    /// Returns log π_b(y_t) under the policy that sampled the token.
    #[must_use]
    pub fn behavior_logprobs(&self) -> &'a [f64] {
        self.behavior_logprobs
    }

    /// Returns A_t.
    #[must_use]
    pub fn advantages(&self) -> Advantages<'a> {
        self.advantages
    }

    /// Returns log π_ref(y_t) under a fixed reference policy, if given.
    #[must_use]
    pub fn reference_logprobs(&self) -> Option<&'a [f64]> {
        self.reference_logprobs
    }

    /// Returns the number of tokens of each turn, if given.
    #[must_use]
    pub fn turns(&self) -> Option<&'a [usize]> {
        self.turns
    }

    /// Returns log π_θ(y_t) − log π_b(y_t) of one token; −∞ if the policy has made the token
    /// impossible.
    ///
    /// # Errors
    ///
    /// [`ObjectiveError::NonFinite`] if a log-probability or their difference is NaN or infinite,
    /// except for log π_θ = −∞.
    ///
    /// # Panics
    ///
    /// Panics if the sequence has no such token.
    ///
    /// ```
    /// use turnwise_objective::{Advantages, Sequence};
    ///
    /// let sequence = Sequence::new(&[-0.5, f64::NAN], &[-0.75; 2], Advantages::Uniform(1.0))?;
    /// assert_eq!(sequence.log_ratio(0)?, 0.25);
    /// assert_eq!(sequence.log_ratio(1).unwrap_err().to_string(), "logprob of token 1 is NaN");
    /// # Ok::<(), turnwise_objective::ObjectiveError>(())
    /// ```
    pub fn log_ratio(&self, token: usize) -> Result<f64, ObjectiveError> {
        let (logprob, behavior_logprob) = (self.logprobs[token], self.behavior_logprobs[token]);
        if logprob.is_nan() || logprob == f64::INFINITY {
            return Err(ObjectiveError::NonFinite { quantity: "logprob", token, value: logprob });
        }
        let log_ratio = logprob - finite("behavior logprob", token, behavior_logprob)?;
        if logprob == f64::NEG_INFINITY {
            return Ok(log_ratio);
        }
        finite("log ratio", token, log_ratio)
    }

    /// Returns A_t of one token.
    ///
    /// # Errors
    ///
    /// [`ObjectiveError::NonFinite`] if the advantage is NaN or infinite.
    ///
    /// # Panics
    ///
    /// Panics if the sequence has no such token.
    ///
    /// ```
    /// use turnwise_objective::{Advantages, Sequence};
    ///
    /// let sequence = Sequence::new(&[-0.5; 2], &[-0.5; 2], Advantages::PerToken(&[1.0, -2.0]))?;
    /// assert_eq!(sequence.advantage(1)?, -2.0);
    /// # Ok::<(), turnwise_objective::ObjectiveError>(())
    /// ```
    pub fn advantage(&self, token: usize) -> Result<f64, ObjectiveError> {
        match self.advantages {
            Advantages::Uniform(advantage) => finite("advantage", token, advantage),
            Advantages::PerToken(advantages) => finite("advantage", token, advantages[token]),
        }
    }

    /// Returns the tokens of a range, one turn, as a sequence of their own.
    pub(crate) fn slice(&self, range: Range<usize>) -> Self {
        let advantages = match self.advantages {
            Advantages::Uniform(advantage) => Advantages::Uniform(advantage),
            Advantages::PerToken(all) => Advantages::PerToken(&all[range.clone()]),
        };
        Self {
            logprobs: &self.logprobs[range.clone()],
            behavior_logprobs: &self.behavior_logprobs[range.clone()],
            advantages,
            reference_logprobs: self.reference_logprobs.map(|all| &all[range]),
            turns: None,
        }
    }

    /// Returns an error for the first advantage that is not finite.
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
        finite("advantage", token, value).map(|_| ())
    }
}

/// Returns a number of a token, or an error if it is not finite.
fn finite(quantity: &'static str, token: usize, value: f64) -> Result<f64, ObjectiveError> {
    if value.is_finite() {
        Ok(value)
    } else {
        Err(ObjectiveError::NonFinite { quantity, token, value })
    }
}

/// Returns an error unless a slice has one entry per token.
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
