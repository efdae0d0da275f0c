//! Messages of the protocol that are protobuf on the wire, with the fields that are used here.

use std::collections::BTreeMap;

/// `dtype` of 32-bit floats.
pub(super) const FLOAT32: i32 = 1;
/// `dtype` of 64-bit integers.
pub(super) const INT64: i32 = 2;

/// A request to compute log-probabilities, and gradients unless it is `forward_only`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ForwardBackwardRequest {
    #[prost(string, tag = "1")]
    pub(super) model_id: String,
    #[prost(int32, tag = "2")]
    pub(super) seq_id: i32,
    #[prost(message, repeated, tag = "3")]
    pub(super) data: Vec<Datum>,
    #[prost(string, tag = "4")]
    pub(super) loss_fn: String,
    #[prost(btree_map = "string, double", tag = "5")]
    pub(super) loss_fn_config: BTreeMap<String, f64>,
    #[prost(bool, tag = "6")]
    pub(super) forward_only: bool,
}

/// One sequence with the inputs of its loss.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Datum {
    #[prost(message, repeated, tag = "1")]
    pub(super) model_input: Vec<Chunk>,
    #[prost(btree_map = "string, message", tag = "2")]
    pub(super) loss_fn_inputs: BTreeMap<String, Tensor>,
}

/// A part of a sequence; the kinds that are not text are left out.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Chunk {
    #[prost(message, optional, tag = "1")]
    pub(super) encoded_text: Option<EncodedText>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EncodedText {
    /// 32-bit integers, little-endian.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) tokens: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Tensor {
    #[prost(bytes = "vec", optional, tag = "1")]
    pub(super) dense: Option<Vec<u8>>,
    #[prost(int32, tag = "3")]
    pub(super) dtype: i32,
    #[prost(int64, repeated, tag = "4")]
    pub(super) shape: Vec<i64>,
}

/// The answer to a [`ForwardBackwardRequest`].
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ForwardBackwardOutput {
    #[prost(message, repeated, tag = "2")]
    pub(super) loss_fn_outputs: Vec<ArrayRecord>,
    #[prost(btree_map = "string, double", tag = "3")]
    pub(super) metrics: BTreeMap<String, f64>,
}

/// Fields of several sequences.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ArrayRecord {
    #[prost(btree_map = "string, message", tag = "2")]
    pub(super) fields: BTreeMap<String, BatchedTensor>,
    #[prost(int64, tag = "3")]
    pub(super) num_datums: i64,
}

/// The values of several sequences, one after the other.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct BatchedTensor {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) data: Vec<u8>,
    /// 64-bit integers: the byte at which each sequence begins, and the end.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) offsets: Vec<u8>,
    #[prost(int32, tag = "3")]
    pub(super) dtype: i32,
}

/// The answer to a request to sample.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SampleResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) sequences: Vec<SampledSequence>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SampledSequence {
    /// 0 for a stop token, 1 for the length.
    #[prost(int32, tag = "1")]
    pub(super) stop_reason: i32,
    /// 32-bit integers.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) tokens: Vec<u8>,
    /// 32-bit floats.
    #[prost(bytes = "vec", optional, tag = "3")]
    pub(super) logprobs: Option<Vec<u8>>,
}

impl Tensor {
    pub(super) fn floats(values: &[f32]) -> Self {
        let dense = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { dense: Some(dense), dtype: FLOAT32, shape: vec![number(values.len())] }
    }

    pub(super) fn integers(values: impl ExactSizeIterator<Item = i64>) -> Self {
        let shape = vec![number(values.len())];
        let dense = values.flat_map(i64::to_le_bytes).collect();
        Self { dense: Some(dense), dtype: INT64, shape }
    }
}

impl ForwardBackwardOutput {
    /// Returns the log-probabilities of each sequence, or what is wrong with the message.
    pub(super) fn logprobs(&self) -> Result<Vec<Vec<f32>>, String> {
        let mut all = Vec::new();
        for record in &self.loss_fn_outputs {
            let field = record.fields.get("logprobs").ok_or("no log-probabilities")?;
            if field.dtype != FLOAT32 {
                return Err(format!("log-probabilities of dtype {}", field.dtype));
            }
            let sequences = field.sequences()?;
            if usize::try_from(record.num_datums) != Ok(sequences.len()) {
                return Err(format!("{} sequences for {}", sequences.len(), record.num_datums));
            }
            all.extend(sequences);
        }
        Ok(all)
    }
}

impl BatchedTensor {
    fn sequences(&self) -> Result<Vec<Vec<f32>>, String> {
        let (offsets, rest) = self.offsets.as_chunks::<8>();
        let offsets: Vec<i64> = offsets.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect();
        let ends = (offsets.first(), offsets.last());
        let is_whole = rest.is_empty() && ends == (Some(&0), Some(&number(self.data.len())));
        if !is_whole {
            return Err("offsets that do not cover the log-probabilities".to_owned());
        }
        let part = |pair: &[i64]| {
            let (start, end) = (usize::try_from(pair[0]).ok()?, usize::try_from(pair[1]).ok()?);
            floats(self.data.get(start..end)?)
        };
        let parts: Option<Vec<_>> = offsets.windows(2).map(part).collect();
        parts.ok_or_else(|| "offsets that are not in order".to_owned())
    }
}

/// Returns a length as the protocol has it.
fn number(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// Returns little-endian floats, or `None` if a part of one is missing.
pub(super) fn floats(bytes: &[u8]) -> Option<Vec<f32>> {
    let (chunks, rest) = bytes.as_chunks::<4>();
    rest.is_empty().then(|| chunks.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

/// Returns little-endian 32-bit integers that are ids of tokens.
pub(super) fn ids(bytes: &[u8]) -> Option<Vec<u32>> {
    let (chunks, rest) = bytes.as_chunks::<4>();
    let id = |bytes: &[u8; 4]| u32::try_from(i32::from_le_bytes(*bytes)).ok();
    if rest.is_empty() { chunks.iter().map(id).collect() } else { None }
}
