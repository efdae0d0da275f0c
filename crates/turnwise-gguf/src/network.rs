//! The models of `candle-transformers`, behind one interface that prevents wrong use.

use std::fmt;
use std::io::Cursor;
use std::sync::Arc;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Tensor};
use candle_transformers::models::{quantized_llama, quantized_qwen2, quantized_qwen3};

use crate::GgufError;
use crate::metadata::DTYPE;
use crate::refusals::{Family, Sizes, check};

/// The number of positions for which `quantized_qwen3` allocates its cache; it doubles them as needed.
const QWEN3_ROOM: usize = 4096;

/// A model with the KV cache of one sequence.
pub(crate) struct Network {
    sizes: Sizes,
    weights: Weights,
}

enum Weights {
    Llama(quantized_llama::ModelWeights),
    Qwen2 {
        weights: quantized_qwen2::ModelWeights,
        /// The file: this type cannot be cloned, so another sequence reads its weights again.
        bytes: Arc<[u8]>,
    },
    Qwen3(quantized_qwen3::ModelWeights),
}

impl Network {
    /// Reads the bytes of a GGUF file.
    pub(crate) fn read(bytes: Arc<[u8]>) -> Result<Self, GgufError> {
        let mut reader = Cursor::new(bytes.clone());
        let malformed = |error: candle_core::Error| GgufError::Malformed(error.to_string());
        let mut content = Content::read(&mut reader).map_err(malformed)?;
        let sizes = check(&content)?;
        content.metadata.entry(DTYPE.to_owned()).or_insert(Value::U32(0));
        let device = &Device::Cpu;
        let weights = match sizes.family {
            Family::Llama => {
                let weights =
                    quantized_llama::ModelWeights::from_gguf(content, &mut reader, device);
                Weights::Llama(weights.map_err(malformed)?)
            }
            Family::Qwen2 => {
                let weights =
                    quantized_qwen2::ModelWeights::from_gguf(content, &mut reader, device);
                Weights::Qwen2 { weights: weights.map_err(malformed)?, bytes }
            }
            Family::Qwen3 => {
                let weights =
                    quantized_qwen3::ModelWeights::from_gguf(content, &mut reader, device);
                Weights::Qwen3(weights.map_err(malformed)?)
            }
        };
        Ok(Self { sizes, weights })
    }

    pub(crate) fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Returns the bytes of a sequence of maximal length, without the weights that all sequences share.
    pub(crate) fn bytes_per_sequence(&self) -> u64 {
        let Sizes { max_positions, kv_bytes_per_token, .. } = self.sizes;
        let (positions, weights) = match &self.weights {
            Weights::Llama(_) => (max_positions, 0),
            Weights::Qwen2 { bytes, .. } => (max_positions, bytes.len()),
            Weights::Qwen3(_) => (max_positions.max(QWEN3_ROOM).next_power_of_two(), 0),
        };
        positions as u64 * kv_bytes_per_token + weights as u64
    }

    /// Computes a token at the next position, and returns the logits of the following token. `[V]`
    pub(crate) fn step(&mut self, id: u32, position: usize) -> Result<Vec<f32>, GgufError> {
        self.run(&[id], position)
    }

    /// Clears the cache, and computes all of these in one pass. Only [`clear`](Self::clear) may follow.
    pub(crate) fn together(&mut self, ids: &[u32]) -> Result<Vec<f32>, GgufError> {
        self.clear();
        self.run(ids, 0)
    }

    /// Clears the cache.
    pub(crate) fn clear(&mut self) {
        match &mut self.weights {
            Weights::Llama(weights) => weights.clear_kv_cache(),
            Weights::Qwen2 { weights, .. } => weights.clear_kv_cache(),
            Weights::Qwen3(weights) => weights.clear_kv_cache(),
        }
    }

    /// Returns a copy of the model with its cache; `None` if the type cannot be copied.
    pub(crate) fn fork(&self) -> Option<Self> {
        let weights = match &self.weights {
            Weights::Llama(weights) => Weights::Llama(weights.clone()),
            Weights::Qwen2 { .. } => return None,
            Weights::Qwen3(weights) => Weights::Qwen3(weights.clone()),
        };
        Some(Self { sizes: self.sizes, weights })
    }

    /// Returns the same model for another sequence.
    pub(crate) fn fresh(&self) -> Result<Self, GgufError> {
        if let Weights::Qwen2 { bytes, .. } = &self.weights {
            return Self::read(bytes.clone());
        }
        let mut fresh = self
            .fork()
            .ok_or_else(|| GgufError::Unsupported("a model that cannot be copied".to_owned()))?;
        fresh.clear();
        Ok(fresh)
    }

    fn run(&mut self, ids: &[u32], position: usize) -> Result<Vec<f32>, GgufError> {
        let input = Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu)?;
        let logits = match &mut self.weights {
            Weights::Llama(weights) => weights.forward(&input, position),
            Weights::Qwen2 { weights, .. } => weights.forward(&input, position),
            Weights::Qwen3(weights) => weights.forward(&input, position),
        };
        Ok(logits?.flatten_all()?.to_vec1()?)
    }
}

/// Checks the tensors of a GGUF file for numbers that are NaN or infinite: quantisation rounds a scale to F16, in which
/// large weights become infinite.
pub(crate) fn check_finite(bytes: &Arc<[u8]>) -> Result<(), GgufError> {
    let mut reader = Cursor::new(bytes.clone());
    let malformed = |error: candle_core::Error| GgufError::Malformed(error.to_string());
    let content = Content::read(&mut reader).map_err(malformed)?;
    check(&content)?;
    for name in content.tensor_infos.keys() {
        let stored = content.tensor(&mut reader, name, &Device::Cpu).map_err(malformed)?;
        let values: Vec<f32> = stored.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()?;
        if let Some(index) = values.iter().position(|x| !x.is_finite()) {
            let (value, dtype, shape) = (values[index], stored.dtype(), stored.shape().dims());
            return Err(GgufError::NotFinite(format!(
                "{name} of the type {dtype:?} and the shape {shape:?} is {value} at number {index} and must be finite"
            )));
        }
    }
    Ok(())
}

impl fmt::Debug for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Network").field("sizes", &self.sizes).finish_non_exhaustive()
    }
}
