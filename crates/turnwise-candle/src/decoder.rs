use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use serde_json::{Map, Value};

use crate::batch::{Batch, Sequence, chunk_tokens};
use crate::forward::{Forward, Kernels};
use crate::layout::{Network, Spec, specs};
use crate::numbers::numbers;
use crate::rope::Rope;
use crate::weights::Weights;
use crate::{DecoderConfig, ModelError, checkpoint, initial};

/// A language model with its weights, f32 on the processor.
///
/// ```
/// use turnwise_candle::{Decoder, DecoderConfig};
///
/// let model = Decoder::random(DecoderConfig::small(320), 7)?;
/// let logprobs = model.score(&[vec![3, 1, 4, 1, 5]])?;
/// assert_eq!(logprobs[0].len(), 4);
/// # Ok::<(), turnwise_candle::ModelError>(())
/// ```
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    /// In the order of [`specs`].
    parameters: Vec<Parameter>,
    /// `config.json` as it was read; empty for a model made here.
    original: Map<String, Value>,
    kernels: Kernels,
    rope: Arc<Rope>,
}

/// A trainable tensor.
#[derive(Debug)]
pub(crate) struct Parameter {
    pub(crate) spec: Spec,
    pub(crate) var: Var,
}

impl Decoder {
    /// Reads a Hugging Face checkpoint: `config.json` with `model.safetensors` or shards and their index. F32, BF16 and F16
    /// weights become f32.
    ///
    /// # Errors
    /// When a file is missing or damaged, the model is not one this crate computes, or tensors are missing, unknown or of
    /// another shape.
    pub fn from_directory(directory: &Path) -> Result<Self, ModelError> {
        let original = checkpoint::read_config(directory)?;
        let config = DecoderConfig::from_json(&original)?;
        let values = checkpoint::read_weights(directory, &specs(&config))?;
        Self::from_values(config, original, values)
    }

    /// A model with random weights, the same for the same seed on every machine.
    ///
    /// Embedding and head are drawn with deviation 0.02, so that its first distribution is nearly uniform; matrices with
    /// one over the root of their inputs, and those that add to the residual stream with that over the root of twice the
    /// layers; gains are 1.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`] when `config` cannot be a model.
    pub fn random(config: DecoderConfig, seed: u64) -> Result<Self, ModelError> {
        config.validate()?;
        let values = initial::values(&config, seed);
        Self::from_values(config, Map::new(), values)
    }

    /// Writes `config.json` and `model.safetensors` into an existing directory, as transformers reads them.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, directory: &Path) -> Result<(), ModelError> {
        let config = self.config.to_json(&self.original);
        checkpoint::write_model(directory, &config, &self.specs(), &self.values()?)
    }

    /// The same model computed by other operations.
    #[must_use]
    pub fn with_kernels(self, kernels: Kernels) -> Self {
        Self { kernels, ..self }
    }

    /// The sizes.
    #[must_use]
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// How many trainable numbers it has; a tied embedding counts once.
    #[must_use]
    pub fn n_parameters(&self) -> usize {
        self.parameters.iter().map(|parameter| parameter.spec.len()).sum()
    }

    /// Log-probabilities at temperature 1: entry `t` of a sequence is that of `ids[t + 1]` given `ids[..=t]`, in nats.
    /// A sequence of one token or none has none.
    ///
    /// # Errors
    /// [`ModelError::BadToken`] for a token beyond the vocabulary, [`ModelError::TooLong`] for a sequence beyond the
    /// model's positions.
    pub fn score(&self, ids: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, ModelError> {
        for (sequence, ids) in ids.iter().enumerate() {
            self.check_ids(sequence, ids)?;
        }
        let forward = self.forward();
        let network = self.detached();
        let mut scored = Vec::with_capacity(ids.len());
        for chunk in Batch::chunks(ids, chunk_tokens(&self.config), Vec::len) {
            let sequences: Vec<Sequence> = chunk.iter().map(|ids| Sequence::whole(ids)).collect();
            let batch = Batch::new(&sequences)?;
            scored.extend(batch.split(&forward.logprobs(&network, &batch)?)?);
        }
        Ok(scored)
    }

    fn check_ids(&self, sequence: usize, ids: &[u32]) -> Result<(), ModelError> {
        let DecoderConfig { vocab_size, max_positions, .. } = self.config;
        if ids.len() > max_positions {
            return Err(ModelError::TooLong { sequence, length: ids.len(), max_positions });
        }
        match ids.iter().position(|id| *id as usize >= vocab_size) {
            Some(position) => {
                Err(ModelError::BadToken { sequence, position, id: ids[position], vocab_size })
            }
            None => Ok(()),
        }
    }

    fn from_values(
        config: DecoderConfig,
        original: Map<String, Value>,
        values: Vec<Vec<f32>>,
    ) -> Result<Self, ModelError> {
        let parameters = specs(&config).into_iter().zip(values).map(|(spec, values)| {
            let var = Var::from_vec(values, spec.shape.clone(), &Device::Cpu)?;
            Ok(Parameter { spec, var })
        });
        let parameters = parameters.collect::<Result<_, ModelError>>()?;
        let rope = Arc::new(Rope::new(&config));
        Ok(Self { config, parameters, original, kernels: Kernels::default(), rope })
    }

    /// The same model with weights of its own, which no optimiser moves.
    pub(crate) fn frozen_copy(&self) -> Result<Self, ModelError> {
        let copy = Self::from_values(self.config, self.original.clone(), self.values()?)?;
        Ok(copy.with_kernels(self.kernels))
    }

    pub(crate) fn forward(&self) -> Forward {
        Forward::new(&self.config, self.rope.clone(), self.kernels)
    }

    /// A copy laid out for inference.
    pub(crate) fn weights(&self) -> Result<Weights, ModelError> {
        Ok(Weights::new(&self.config, self.rope.clone(), self.values()?))
    }

    pub(crate) fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    pub(crate) fn specs(&self) -> Vec<Spec> {
        self.parameters.iter().map(|parameter| parameter.spec.clone()).collect()
    }

    /// The weights with a graph: what is computed from them can be differentiated.
    pub(crate) fn tracked(&self) -> Network<Tensor> {
        let tensors = self.parameters.iter().map(|parameter| parameter.var.as_tensor().clone());
        Network::arrange(&self.config, tensors)
    }

    /// The same weights without a graph.
    pub(crate) fn detached(&self) -> Network<Tensor> {
        let tensors = self.parameters.iter().map(|parameter| parameter.var.as_detached_tensor());
        Network::arrange(&self.config, tensors)
    }

    /// Copies of the weights, in the order of [`specs`].
    pub(crate) fn values(&self) -> Result<Vec<Vec<f32>>, ModelError> {
        let copies = self.parameters.iter().map(|parameter| Ok(numbers(&parameter.var)?.to_vec()));
        copies.collect()
    }

    /// Overwrites the weights with values in the order of [`specs`].
    pub(crate) fn set_values(&self, values: Vec<Vec<f32>>) -> Result<(), ModelError> {
        for (parameter, values) in self.parameters.iter().zip(values) {
            let shape = parameter.spec.shape.clone();
            parameter.var.set(&Tensor::from_vec(values, shape, &Device::Cpu)?)?;
        }
        Ok(())
    }
}
