//! What can be wrong with the input of an objective.

use std::error::Error;
use std::fmt;

/// Why an objective has no loss for its input.
///
/// A token is named by its position in the [`Sequence`](crate::Sequence);
/// [`evaluate_step`](crate::evaluate_step) adds which sequence it was.
///
/// ```
/// use turnwise_objective::{
///     Advantages, Clip, Gspo, LengthWeight, Objective, ObjectiveError, Sequence,
/// };
///
/// let sequence = Sequence::new(&[-1.0, f64::NAN], &[-1.0, -1.0], Advantages::Uniform(1.0))?;
/// let gspo = Gspo { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Mean };
/// let error = gspo.evaluate(&sequence, &mut [0.0; 2]).unwrap_err();
/// assert!(matches!(error, ObjectiveError::NonFinite { quantity: "logprob", token: 1, .. }));
/// assert_eq!(error.to_string(), "logprob of token 1 is NaN");
/// # Ok::<(), ObjectiveError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ObjectiveError {
    /// A clip bound is outside 0 ≤ low < 1, 0 ≤ high < ∞.
    InvalidClip {
        /// The lower bound asked for.
        low: f64,
        /// The upper bound asked for.
        high: f64,
    },
    /// The bound of a dual clip is not a finite number above 1 + ε_h.
    InvalidDualClip {
        /// The bound asked for.
        bound: f64,
        /// 1 + ε_h, which it must exceed.
        above: f64,
    },
    /// The objective needs a column that the sequence does not have.
    MissingColumn {
        /// Which: "reference_logprobs" or "turns".
        column: &'static str,
    },
    /// A setting is outside its range.
    InvalidSetting {
        /// Which one.
        setting: &'static str,
        /// What it is.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
    /// A slice does not have one entry per token.
    LengthMismatch {
        /// Which slice.
        slice: &'static str,
        /// The number of tokens.
        expected: usize,
        /// The length of the slice.
        actual: usize,
    },
    /// A number of a token, or a sum that ends at this token, is not finite where it must be.
    NonFinite {
        /// Which number: "logprob", "behavior logprob", "reference logprob", "log ratio" or
        /// "advantage".
        quantity: &'static str,
        /// The position of the token.
        token: usize,
        /// The number.
        value: f64,
    },
    /// The objective needs one advantage for the whole sequence and was given different ones.
    NonUniformAdvantages {
        /// The first token whose advantage differs from that of token 0.
        token: usize,
    },
    /// The loss of a sequence with finite input is beyond the range of f64.
    LossOverflow {
        /// What came out instead.
        loss: f64,
    },
    /// An objective divides by something that is not positive and finite.
    InvalidDenominator {
        /// The denominator.
        value: f64,
    },
    /// One sequence of a step is at fault.
    InSequence {
        /// Its position in the step.
        index: usize,
        /// What is wrong with it.
        source: Box<ObjectiveError>,
    },
}

impl ObjectiveError {
    /// The error of a part of a sequence, with its tokens counted from the start of the whole.
    pub(crate) fn shifted(self, by: usize) -> Self {
        match self {
            Self::NonFinite { quantity, token, value } => {
                Self::NonFinite { quantity, token: token + by, value }
            }
            other => other,
        }
    }
}

impl fmt::Display for ObjectiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidClip { low, high } => {
                write!(f, "clip bounds {low} and {high} are outside 0 <= low < 1, 0 <= high < inf")
            }
            Self::InvalidDualClip { bound, above } => {
                write!(f, "dual clip bound {bound} is not a finite number above {above}")
            }
            Self::MissingColumn { column: "turns" } => {
                write!(f, "turns of the sequence are not known; add them by with_turns")
            }
            Self::MissingColumn { column } => {
                write!(f, "{column} of the sequence are not known; add them by with_reference")
            }
            Self::InvalidSetting { setting, value, range } => {
                write!(f, "{setting} {value} is not {range}")
            }
            Self::LengthMismatch { slice: slice @ "turns", expected, actual } => {
                write!(f, "{slice} have {actual} tokens together for {expected} tokens")
            }
            Self::LengthMismatch { slice, expected, actual } => {
                write!(f, "{slice} has {actual} entries for {expected} tokens")
            }
            Self::NonFinite { quantity, token, value } => {
                write!(f, "{quantity} of token {token} is {value}")
            }
            Self::NonUniformAdvantages { token } => {
                write!(f, "advantage of token {token} differs from that of token 0; use gspo_token")
            }
            Self::LossOverflow { loss } => write!(f, "loss of finite numbers is {loss}"),
            Self::InvalidDenominator { value } => {
                write!(f, "denominator {value} is not positive and finite")
            }
            Self::InSequence { index, .. } => write!(f, "evaluate sequence {index}"),
        }
    }
}

impl Error for ObjectiveError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::InSequence { source, .. } => Some(source),
            _ => None,
        }
    }
}
