//! A row's tokens as the protocol has them: inputs, and the token that follows each.

use std::collections::BTreeMap;

use turnwise_training::{LearnerError, Row};
use turnwise_trajectory::TokenId;

use super::messages::{Chunk, Datum, EncodedText, Tensor};

/// Tokens of which each but the first is predicted.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ShiftedRow {
    ids: Vec<TokenId>,
}

impl ShiftedRow {
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

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::super::messages::{
        ForwardBackwardOutput, ForwardBackwardRequest, SampleResponse, floats, ids,
    };
    use super::*;

    /// A forward-only request that the SDK of version 0.25.0 sent.
    const FORWARD: &str = "\
        0a0e6d6f64656c5f663435336631653210011aa4010a200a1e0a1c010100002100000022000000230000002400000025 \
        00000026000000122e0a077765696768747312230a1c0000803f0000803f0000803f0000803f0000803f0000803f0000 \
        803f180122010712500a0d7461726765745f746f6b656e73123f0a382100000000000000220000000000000023000000 \
        0000000024000000000000002500000000000000260000000000000027000000000000001802220107220d63726f7373 \
        5f656e74726f70793001";
    /// Its request with the loss `importance_sampling`.
    const FORWARD_BACKWARD: &str = "\
        0a0e6d6f64656c5f663435336631653210041ad8010a200a1e0a1c010100002100000022000000230000002400000025 \
        00000026000000122f0a086c6f6770726f627312230a1cb4bfb4c0582db8c094f0b7c01e82c0c023f8b3c0503dbec09d \
        d4b0c0180122010712500a0d7461726765745f746f6b656e73123f0a3821000000000000002200000000000000230000 \
        00000000002400000000000000250000000000000026000000000000002700000000000000180222010712310a0a6164 \
        76616e746167657312230a1c0000803f0000803f0000803f0000803f0000803f0000803f0000803f1801220107221369 \
        6d706f7274616e63655f73616d706c696e67";
    /// SkyRL's answer to the first.
    const OUTPUT: &str = "\
        0a067363616c6172128a01123e0a086c6f6770726f627312320a1cb4bfb4c0582db8c094f0b7c01e82c0c023f8b3c050 \
        3dbec09dd4b0c0121000000000000000001c00000000000000180112460a10656c656d656e74776973655f6c6f737312 \
        320a1cb4bfb440582db84094f0b7401e82c04023f8b340503dbe409dd4b040121000000000000000001c000000000000 \
        0018011801";
    /// Its answer to a request for two samples and the log-probabilities of the prompt.
    const SAMPLES: &str = "\
        0a3608011218d4000000290000005f000000b2000000320100009b0000001a188088b6c05917bec067fac4c0c35db0c0 \
        3dabb4c0fce6bdc00a360801121857000000e20000009e0000000f000000160000008f0000001a182346b5c0c93eb4c0 \
        c1b6b1c067deb5c00145b7c08219b8c0121c723dc1c07bf29ac0f034aec0bef4a6c055c5b9c07de1a5c09d46a9c0";

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> =
            hex.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
        digits.chunks(2).map(|pair| 16 * pair[0] + pair[1]).collect()
    }

    fn sequence() -> ShiftedRow {
        ShiftedRow::new(vec![257, 33, 34, 35, 36, 37, 38, 39])
    }

    fn logprobs() -> Vec<f32> {
        let output = ForwardBackwardOutput::decode(&*bytes(OUTPUT)).unwrap();
        output.logprobs().unwrap().remove(0)
    }

    #[test]
    fn requests_are_those_of_the_sdk() {
        let request = ForwardBackwardRequest::decode(&*bytes(FORWARD)).unwrap();
        assert_eq!((&*request.loss_fn, request.forward_only), ("cross_entropy", true));
        assert_eq!(request.data, [sequence().scored()]);
        let request = ForwardBackwardRequest::decode(&*bytes(FORWARD_BACKWARD)).unwrap();
        assert_eq!((&*request.loss_fn, request.forward_only), ("importance_sampling", false));
        assert_eq!(request.data, [sequence().weighted(&logprobs(), &[1.0; 7])]);
        assert_eq!(request.encode_to_vec().len(), bytes(FORWARD_BACKWARD).len());
    }

    #[test]
    fn answers_of_a_server_are_read() {
        let logprobs = logprobs();
        assert_eq!(logprobs.len(), 7);
        assert!(logprobs.iter().all(|logprob| (-6.1..-5.4).contains(logprob)), "{logprobs:?}");
        let response = SampleResponse::decode(&*bytes(SAMPLES)).unwrap();
        let first = &response.sequences[0];
        assert_eq!((response.sequences.len(), first.stop_reason), (2, 1));
        assert_eq!(ids(&first.tokens).unwrap(), [212, 41, 95, 178, 306, 155]);
        assert_eq!(floats(first.logprobs.as_ref().unwrap()).unwrap().len(), 6);
    }

    #[test]
    fn offsets_that_do_not_fit_are_refused() {
        let output = ForwardBackwardOutput::decode(&*bytes(OUTPUT)).unwrap();
        let changed = |change: &dyn Fn(&mut ForwardBackwardOutput)| {
            let mut output = output.clone();
            change(&mut output);
            output.logprobs()
        };
        let field = |output: &mut ForwardBackwardOutput, offsets: &[i64]| {
            let field = output.loss_fn_outputs[0].fields.get_mut("logprobs").unwrap();
            field.offsets = offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect();
        };
        assert!(changed(&|output| field(output, &[0, 28])).is_ok());
        for offsets in [&[0, 24][..], &[4, 28], &[0, 30, 28], &[0, -4, 28], &[0, 3, 28], &[]] {
            assert!(changed(&|output| field(output, offsets)).is_err(), "{offsets:?}");
        }
        assert!(changed(&|output| output.loss_fn_outputs[0].num_datums = 2).is_err());
        assert!(changed(&|output| output.loss_fn_outputs[0].fields.clear()).is_err());
    }
}
