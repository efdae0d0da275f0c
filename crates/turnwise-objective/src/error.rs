//! Errors of objectives.

use std::error::Error;
use std::fmt;

/// The reason why an objective cannot be evaluated.
///
/// A token is named by its position in the [`Sequence`](crate::Sequence);
/// [`evaluate_step`](crate::evaluate_step) adds the position of the sequence.
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
        /// The lower bound.
        low: f64,
        /// The upper bound.
        high: f64,
    },
    /// The bound of a dual clip is not a finite number above 1 + ε_h.
    InvalidDualClip {
        /// The bound.
        bound: f64,
        /// 1 + ε_h, which the bound must exceed.
        above: f64,
    },
    /// The objective needs a column that the sequence does not have.
    MissingColumn {
        /// The column: "reference_logprobs" or "turns".
        column: &'static str,
    },
    /// A setting is outside its range.
    InvalidSetting {
        /// The name of the setting.
        setting: &'static str,
        /// The value of the setting.
        value: f64,
        /// The allowed range.
        range: &'static str,
    },
    /// A slice does not have one entry per token.
    LengthMismatch {
        /// The name of the slice.
        slice: &'static str,
        /// The number of tokens.
        expected: usize,
        /// The length of the slice.
        actual: usize,
    },
    /// A number of a token, or a sum that ends at this token, is not finite where it must be.
    NonFinite {
        /// The quantity: "logprob", "behavior logprob", "reference logprob", "log ratio" or
        /// "advantage".
        quantity: &'static str,
        /// The position of the token.
        token: usize,
        /// The number.
        value: f64,
    },
    /// The objective needs one advantage for the whole sequence, and the advantages differ.
    NonUniformAdvantages {
        /// The first token whose advantage differs from that of token 0.
        token: usize,
    },
    /// The loss of a sequence with finite input is beyond the range of f64.
    LossOverflow {
        /// The value of the loss.
        loss: f64,
    },
    /// The denominator of an objective is not positive and finite.
    InvalidDenominator {
        /// The denominator.
        value: f64,
    },
    /// The error of one sequence of a step.
    InSequence {
        /// The position of the sequence in the step.
        index: usize,
        /// The error of the sequence.
        source: Box<ObjectiveError>,
    },
}

impl ObjectiveError {
    /// Returns the error of a part of a sequence, with its tokens counted from the start of the
    /// whole.
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
                write!(f, "the turns of the sequence are unknown: add them with `with_turns`")
            }
            Self::MissingColumn { column } => {
                write!(
                    f,
                    "the {column} of the sequence are unknown: add them with `with_reference`"
                )
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
                write!(f, "advantage of token {token} differs from that of token 0: use gspo_token")
            }
            Self::LossOverflow { loss } => write!(f, "the loss of finite numbers is {loss}"),
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
