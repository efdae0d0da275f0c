//! A row's tokens as the protocol has them: inputs, and the token that follows each.

use std::collections::BTreeMap;

use turnwise_training::{LearnerError, Row};
use turnwise_trajectory::TokenId;

use super::messages::{Chunk, Datum, EncodedText, Tensor};

/// Tokens of which each but the first is predicted.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sequence {
    ids: Vec<TokenId>,
}

impl Sequence {
    /// Returns the sequence of a row, the `index`-th.
    ///
    /// # Errors
    /// [`LearnerError::BadRow`] if the row needs what a server cannot compute.
    pub(super) fn of(index: usize, row: &Row) -> Result<Self, LearnerError> {
        let bad = |reason: &str| LearnerError::BadRow { row: index, reason: reason.to_owned() };
        let is_inside = |position: usize| (1..row.ids.len()).contains(&position);
        if !row.targets.iter().all(|target| is_inside(target.position)) {
            return Err(bad("a target is outside of the row, or at its start"));
        }
        if row.targets.iter().any(|target| target.temperature != 1.0) {
            return Err(bad(
                "a Tinker server computes log-probabilities at temperature 1 alone; sample with `temperature = 1`",
            ));
        }
        if !row.kept.is_empty() {
            return Err(bad(
                "a Tinker server computes log-probabilities over the whole vocabulary alone; sample with \
                            `top_p = 1`, `top_k = 0` and `min_p = 0`, and without a grammar",
            ));
        }
        if row.ids.iter().any(|id| i32::try_from(*id).is_err()) {
            return Err(bad("a token id is too large for the protocol"));
        }
        Ok(Self { ids: row.ids.clone() })
    }

    pub(super) fn new(ids: Vec<TokenId>) -> Self {
        Self { ids }
    }

    /// Returns the number of predicted tokens.
    pub(super) fn len(&self) -> usize {
        self.ids.len().saturating_sub(1)
    }

    /// Returns the sequence for log-probabilities alone.
    pub(super) fn scored(&self) -> Datum {
        let weights = Tensor::floats(&vec![1.0; self.len()]);
        self.datum([("weights", weights)])
    }

    /// Returns the sequence with its log-probabilities and advantages, of every predicted token.
    pub(super) fn weighted(&self, logprobs: &[f32], advantages: &[f32]) -> Datum {
        self.datum([
            ("logprobs", Tensor::floats(logprobs)),
            ("advantages", Tensor::floats(advantages)),
        ])
    }

    fn datum<const N: usize>(&self, inputs: [(&str, Tensor); N]) -> Datum {
        let inputs = inputs.into_iter().map(|(name, tensor)| (name.to_owned(), tensor));
        let mut loss_fn_inputs: BTreeMap<String, Tensor> = inputs.collect();
        let targets = self.ids[1..].iter().map(|id| i64::from(*id));
        loss_fn_inputs.insert("target_tokens".to_owned(), Tensor::integers(targets));
        let tokens = self.ids[..self.len()].iter().flat_map(|id| id.to_le_bytes()).collect();
        let encoded_text = Some(EncodedText { tokens });
        Datum { model_input: vec![Chunk { encoded_text }], loss_fn_inputs }
    }
}
