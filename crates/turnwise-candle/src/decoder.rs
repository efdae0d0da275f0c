//! A language model with its weights.

mod culprit;
mod parameter;
mod passes;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device as Place, Tensor, Var};
use serde_json::{Map, Value};
use turnwise_kernels::buffer::BufferPool;
use turnwise_rollout::Meter;

use crate::balance::balance_loss;
use crate::batch::{CHUNK_TOKENS, Cut, PackedBatch, ScoredSequence};
use crate::checkpoint::{
    self, CONFIG, ParameterValues, Piece, Precision, Tensors, Values, WEIGHTS,
};
use crate::config::{has_images, text_part, with_dtype};
use crate::dimensions::{Dimensions, Ropes};
use crate::finite::{describe, first_not_finite};
use crate::forward::Kernels;
use crate::layout::{Network, Spec, specs};
use crate::numbers::host_numbers;
use crate::pass::Pass;
use crate::snapshot::{Snapshot, TensorWeights};
use crate::tape::Keep;
use crate::weights::Weights;
use crate::{
    ComputePrecision, DecoderConfig, Device, EngineWeights, LoraSettings, ModelError, forms,
    initial, threads,
};

pub(crate) use parameter::{NumberStorage, Parameter};

/// A language model with its weights: f32, on the CPU unless they are [moved](Self::with_device).
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
    /// The adapters, if the model has any.
    lora: Option<LoraSettings>,
    /// The frozen matrices beside adapters, in a form that an engine shares.
    base: Option<Arc<Weights>>,
    /// The directory or file that it was read from.
    directory: Option<PathBuf>,
    /// `config.json` as it was read, or as it would be written for a model created here.
    original: Map<String, Value>,
    kernels: Kernels,
    precision: ComputePrecision,
    place: Place,
    ropes: Arc<Ropes>,
    pool: Arc<BufferPool>,
}

impl Decoder {
    /// Reads a Hugging Face checkpoint: `config.json` with `model.safetensors` or shards and their index. F32, BF16 and
    /// F16 weights become f32; each tensor is read directly into its place. Experts may be stored one by one or stacked
    /// as in transformers 5, and the embedding of a tied model may be stored under the name of the head. Of a Gemma 3 with
    /// images, the text model is read and becomes a model of its own. An adapter beside the model is read by
    /// [`Self::with_adapter`] alone.
    ///
    /// # Errors
    /// When a file is missing or damaged, the model is not supported, a number is NaN or infinite, or tensors are
    /// missing, unknown or of another shape; the error names all of them.
    pub fn from_directory(directory: &Path) -> Result<Self, ModelError> {
        Self::from_directory_metered(directory, &Meter::default())
    }

    pub(crate) fn from_directory_metered(
        directory: &Path,
        meter: &Meter,
    ) -> Result<Self, ModelError> {
        if let Some(help) = forms::in_directory(directory) {
            return Err(ModelError::NotFound { model: directory.to_owned(), help });
        }
        let original = checkpoint::read_config(directory)?;
        let mut tensors = Tensors::in_directory(directory);
        if has_images(&original) {
            tensors = tensors.map(Tensors::text_part);
        }
        let original = text_part(original)?;
        let head_width = tensors.as_ref().ok().and_then(head_width);
        let config = DecoderConfig::from_json(&original, head_width)?;
        let loaded = tensors?.read(&specs(&config, None), meter)?;
        Self::from_parts(config, original, loaded, directory)
    }

    /// Makes a model of what a directory or a file holds.
    pub(crate) fn from_parts(
        config: DecoderConfig,
        original: Map<String, Value>,
        loaded: Vec<ParameterValues>,
        path: &Path,
    ) -> Result<Self, ModelError> {
        let model = Self::from_loaded(config, original, loaded)?;
        Ok(Self { directory: Some(path.to_owned()), ..model })
    }

    /// Creates a model with random weights, the same for the same seed on every machine.
    ///
    /// Embedding and head have a standard deviation of 0.02, so that the first distribution is nearly uniform. Matrices
    /// have one over the root of their inputs, divided by the root of twice the number of layers if they add to the
    /// residual stream. Gains are 1.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`] when `config` is invalid.
    pub fn random(config: DecoderConfig, seed: u64) -> Result<Self, ModelError> {
        config.validate()?;
        let values = initial::values(&config, seed).into_iter();
        let loaded = values.map(|values| ParameterValues { values, precision: Precision::Single });
        let original = config.to_json();
        Self::from_loaded(config, original, loaded.collect())
    }

    /// Writes `config.json` and `model.safetensors` for transformers into an existing directory, with the tensor names,
    /// the precision of each tensor and the configuration of the checkpoint that the model was read from.
    ///
    /// Weights that were read as BF16 or F16 are rounded to it again, which loses smaller changes of training. The
    /// checkpoints of [`CandleLearner`](crate::CandleLearner) keep F32. Adapters are merged into their matrices;
    /// [`Self::save_adapter`] writes them alone.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, directory: &Path) -> Result<(), ModelError> {
        let meter = Meter::default();
        self.write(directory, &self.original, |parameter| parameter.precision, &meter)
    }

    /// Like [`Self::save`], but in F32, so that training can continue exactly.
    pub(crate) fn save_exactly(&self, directory: &Path, meter: &Meter) -> Result<(), ModelError> {
        let config = with_dtype(self.original.clone(), "float32");
        self.write(directory, &config, |_| Precision::Single, meter)
    }

    fn write(
        &self,
        directory: &Path,
        config: &Map<String, Value>,
        precision: impl Fn(&Parameter) -> Precision,
        meter: &Meter,
    ) -> Result<(), ModelError> {
        let held = self.parameters.iter().map(|p| p.own().map(|var| host_numbers(var)).transpose());
        let held = held.collect::<candle_core::Result<Vec<_>>>()?;
        let (held, packed, linears) = (&held, &self.packed_matrices(), self.own_linears());
        let pieces = linears.into_iter().flat_map(|linear| {
            let parameter = &self.parameters[linear.weight];
            let spec = &parameter.spec;
            let size = (spec.len() / spec.n_tensors()).max(1);
            let (precision, shape) = (precision(parameter), spec.tensor_shape());
            let of_adapter = |index: usize| -> &[f32] {
                held[index].as_ref().expect("adapters are never packed")
            };
            let adapter = linear.adapter.map(|adapter| adapter.map(&mut { of_adapter }));
            spec.tensor_names().enumerate().map(move |(part, name)| {
                let values = match &held[linear.weight] {
                    Some(numbers) => Values::Numbers(&numbers[part * size..(part + 1) * size]),
                    None => Values::Encoded(&packed[linear.weight][part]),
                };
                Piece { name, shape, values, adapter, precision }
            })
        });
        checkpoint::write_tensors(&directory.join(WEIGHTS), pieces, meter)?;
        checkpoint::write_json(&directory.join(CONFIG), config)
    }

    /// Selects the operations that compute the model. On other devices than the CPU there is only [`Kernels::Plain`],
    /// and the selection has no effect.
    #[must_use]
    pub fn with_kernels(self, kernels: Kernels) -> Self {
        Self { kernels: kernels_on(&self.place, kernels), ..self }
    }

    /// Moves the weights to a device, which from then on computes scores, training, and sampling of the model's
    /// policies. On other devices than the CPU, [`Kernels::Plain`] computes the model, whatever was selected before.
    ///
    /// ```
    /// use turnwise_candle::{Decoder, DecoderConfig, Device};
    ///
    /// let model = Decoder::random(DecoderConfig::small(32), 1)?.with_device("cpu".parse()?)?;
    /// assert_eq!(model.device(), Device::Cpu);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`ModelError::NoDevice`] when the device does not exist, or this program was built without the feature for it.
    pub fn with_device(self, device: Device) -> Result<Self, ModelError> {
        let place = device.open().map_err(|reason| ModelError::NoDevice { device, reason })?;
        self.moved(place)
    }

    /// Moves the weights to a place. Weights that are already there are not copied.
    pub(crate) fn moved(mut self, place: Place) -> Result<Self, ModelError> {
        if place.same_device(&self.place) {
            return Ok(self);
        }
        for parameter in &mut self.parameters {
            let values = parameter.var().as_detached_tensor().to_device(&place)?;
            parameter.storage = NumberStorage::Own(Var::from_tensor(&values)?);
        }
        Ok(Self { kernels: kernels_on(&place, self.kernels), place, ..self })
    }

    /// Selects the precision of products, in training, scoring and in engines that sample from this model.
    #[must_use]
    pub fn with_precision(self, precision: ComputePrecision) -> Self {
        Self { precision, ..self }
    }

    /// Returns the device of the weights.
    #[must_use]
    pub fn device(&self) -> Device {
        Device::of(&self.place)
    }

    /// Returns the configuration.
    #[must_use]
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Returns the number of parameters; a tied embedding counts once.
    #[must_use]
    pub fn n_parameters(&self) -> usize {
        self.parameters.iter().map(|parameter| parameter.spec.len()).sum()
    }

    /// Calls `visit` with each tensor of the checkpoint: its name in Hugging Face's files, its shape, and its numbers
    /// in row-major order. Experts come one by one, as in files; a tied head is left out, and adapters are merged into
    /// their matrices.
    ///
    /// # Errors
    /// The first error of `visit`, [`ModelError::NotFinite`] for a number that is NaN or infinite, or an error of
    /// reading the weights.
    pub fn for_each_tensor<E: From<ModelError>>(
        &self,
        mut visit: impl FnMut(&str, &[usize], &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        for linear in self.own_linears() {
            let spec = &self.parameters[linear.weight].spec;
            let size = (spec.len() / spec.n_tensors()).max(1);
            let merged = self.with_linear(&linear, |linear| linear.merged().into_owned());
            for (name, values) in
                spec.tensor_names().zip(merged.map_err(ModelError::from)?.chunks_exact(size))
            {
                if let Some(index) = first_not_finite(values) {
                    let reason = describe(&name, spec.tensor_shape(), index, values[index]);
                    let action = "read the weights".to_owned();
                    return Err(ModelError::NotFinite { action, reason }.into());
                }
                visit(&name, spec.tensor_shape(), values)?;
            }
        }
        Ok(())
    }

    /// Returns the number of trainable parameters: all, or those of the adapters.
    #[must_use]
    pub fn n_trainable(&self) -> usize {
        self.trainable().map(|parameter| parameter.spec.len()).sum()
    }

    /// Returns the settings of the adapters, if the model has any.
    #[must_use]
    pub fn lora(&self) -> Option<&LoraSettings> {
        self.lora.as_ref()
    }

    /// Returns the directory that the model was read from; `None` for a model created here.
    pub(crate) fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// Returns log-probabilities at temperature 1: entry `t` of a sequence is that of `ids[t + 1]` given `ids[..=t]`,
    /// in nats. The result of a sequence with fewer than two tokens is empty.
    ///
    /// # Errors
    /// [`ModelError::BadToken`] for a token beyond the vocabulary, [`ModelError::TooLong`] for a sequence beyond the
    /// model's positions, and [`ModelError::NotFinite`] when a weight or a result is NaN or infinite.
    pub fn score(&self, ids: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, ModelError> {
        for (sequence, ids) in ids.iter().enumerate() {
            self.check_ids(sequence, ids)?;
        }
        self.in_batches(ids, |pass| {
            let logprobs = self.finite("log-probabilities", pass.logprobs()?)?;
            Ok(pass.batch().split(&logprobs))
        })
    }

    /// Returns the entropies, in nats, of the distributions that [`Self::score`] reads from.
    ///
    /// # Errors
    /// As [`Self::score`].
    pub fn entropies(&self, ids: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, ModelError> {
        for (sequence, ids) in ids.iter().enumerate() {
            self.check_ids(sequence, ids)?;
        }
        self.in_batches(ids, |pass| {
            let entropies = self.finite("entropies", pass.entropies()?)?;
            let rows = pass.batch().predictions.rows();
            let each: Vec<f32> = rows.iter().map(|row| entropies[*row as usize]).collect();
            Ok(pass.batch().split(&each))
        })
    }

    /// Returns a list for each sequence, from forward passes over limited batches.
    fn in_batches(
        &self,
        ids: &[Vec<u32>],
        read: impl Fn(&Pass) -> Result<Vec<Vec<f32>>, ModelError>,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let sequences: Vec<ScoredSequence<'_>> =
            ids.iter().map(|ids| ScoredSequence::whole(ids)).collect();
        let mut lists = vec![Vec::new(); ids.len()];
        for chunk in PackedBatch::chunks(&sequences, CHUNK_TOKENS, Cut::Anywhere) {
            let some: Vec<ScoredSequence<'_>> =
                chunk.iter().map(|i| sequences[*i].clone()).collect();
            let batch = PackedBatch::new(&some);
            if batch.n_targets() > 0 {
                let pass = self.pass(Arc::new(batch), Keep::Nothing)?;
                for (index, list) in chunk.iter().zip(read(&pass)?) {
                    lists[*index] = list;
                }
            }
        }
        Ok(lists)
    }

    /// Returns logits at temperature 1: row `t` predicts the token after `ids[..=t]`. `[tokens, vocabulary]`
    ///
    /// # Errors
    /// As [`Self::score`].
    pub fn logits(&self, ids: &[u32]) -> Result<Vec<Vec<f32>>, ModelError> {
        self.check_ids(0, ids)?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let logits = self.all_logits(Arc::new(PackedBatch::inputs_only(&[ids])))?;
        let logits = self.finite("logits", logits)?;
        Ok(logits.chunks_exact(self.config.vocab_size).map(<[f32]>::to_vec).collect())
    }

    /// Returns the load-balancing loss of the experts on these sequences: `E sum_e f_e P_e`, with `f_e` the share of
    /// tokens that use expert `e` and `P_e` its mean probability, over all layers with experts. For a uniform use it is
    /// the number of experts per token. Returns `None` for a model without experts.
    ///
    /// # Errors
    /// As [`Self::score`].
    pub fn balance(&self, ids: &[Vec<u32>]) -> Result<Option<f32>, ModelError> {
        for (sequence, ids) in ids.iter().enumerate() {
            self.check_ids(sequence, ids)?;
        }
        let ids: Vec<&[u32]> =
            ids.iter().filter(|ids| !ids.is_empty()).map(Vec::as_slice).collect();
        if ids.is_empty() {
            return Ok(None);
        }
        let pass = self.pass(Arc::new(PackedBatch::inputs_only(&ids)), Keep::Nothing)?;
        let loss = balance_loss(pass.uses()).map(|loss| loss as f32);
        loss.map(|loss| Ok(self.finite("the balance of experts", vec![loss])?[0])).transpose()
    }

    pub(crate) fn check_ids(&self, sequence: usize, ids: &[u32]) -> Result<(), ModelError> {
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

    fn from_loaded(
        config: DecoderConfig,
        original: Map<String, Value>,
        loaded: Vec<ParameterValues>,
    ) -> Result<Self, ModelError> {
        threads::start_shared()?;
        let parameters = specs(&config, None).into_iter().zip(loaded).map(|(spec, loaded)| {
            let ParameterValues { values, precision } = loaded;
            let var = Var::from_vec(values, spec.shape.clone(), &Place::Cpu)?;
            Ok(Parameter { spec, storage: NumberStorage::Own(var), precision, trainable: true })
        });
        let parameters = parameters.collect::<Result<_, ModelError>>()?;
        let ropes = Arc::new(Ropes::new(&config));
        Ok(Self {
            config,
            parameters,
            lora: None,
            directory: None,
            original,
            base: None,
            kernels: Kernels::default(),
            precision: ComputePrecision::default(),
            place: Place::Cpu,
            ropes,
            pool: Arc::default(),
        })
    }

    /// Rebuilds the model with other parameters, derived from its own.
    pub(crate) fn rearranged(
        self,
        lora: Option<LoraSettings>,
        arrange: impl FnOnce(&mut std::vec::IntoIter<Parameter>) -> Result<Vec<Parameter>, ModelError>,
    ) -> Result<Self, ModelError> {
        let parameters = arrange(&mut self.parameters.into_iter())?;
        Ok(Self { parameters, lora, ..self })
    }

    /// Copies the model with trainable weights of its own, which no optimiser changes. Frozen weights are shared.
    pub(crate) fn frozen_copy(&self) -> Result<Self, ModelError> {
        let copies = self
            .trainable()
            .map(|parameter| Var::from_tensor(&parameter.var().as_detached_tensor()));
        Ok(self.sharing(copies.collect::<candle_core::Result<_>>()?))
    }

    /// Returns a model that shares frozen weights with this one and has these values for the trainable ones, in the
    /// order of the parameters.
    pub(crate) fn beside(&self, trained: Vec<Vec<f32>>) -> Result<Self, ModelError> {
        let vars = trained.into_iter().zip(self.trainable()).map(|(values, parameter)| {
            Var::from_vec(values, parameter.spec.shape.clone(), &self.place)
        });
        Ok(self.sharing(vars.collect::<candle_core::Result<_>>()?))
    }

    /// Returns a model that shares frozen weights and has these variables for the trainable ones.
    fn sharing(&self, trained: Vec<Var>) -> Self {
        let mut trained = trained.into_iter();
        let parameters = self.parameters.iter().map(|parameter| {
            let own = if parameter.trainable { trained.next() } else { None };
            let storage = own.map_or_else(|| parameter.storage.clone(), NumberStorage::Own);
            Parameter { storage, ..parameter.clone() }
        });
        Self {
            config: self.config.clone(),
            parameters: parameters.collect(),
            lora: self.lora.clone(),
            base: self.base.clone(),
            directory: self.directory.clone(),
            original: self.original.clone(),
            kernels: self.kernels,
            precision: self.precision,
            place: self.place.clone(),
            ropes: self.ropes.clone(),
            pool: Arc::default(),
        }
    }

    /// Takes the weights of another model with the same parameters on the same device.
    pub(crate) fn take_weights(&mut self, other: Self) {
        for (own, other) in self.parameters.iter_mut().zip(other.parameters) {
            own.storage = other.storage;
        }
        self.base = other.base;
    }

    pub(crate) fn dimensions(&self) -> Dimensions {
        Dimensions::new(&self.config, self.ropes.clone())
    }

    pub(crate) fn kernels(&self) -> Kernels {
        self.kernels
    }

    pub(crate) fn precision(&self) -> ComputePrecision {
        self.precision
    }

    /// Returns the place of the weights, as a device of the tensor library.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn pool(&self) -> &Arc<BufferPool> {
        &self.pool
    }

    /// Copies the weights for inference on their device: packed into panels on the CPU, as tensors elsewhere. Adapters are
    /// merged, except beside a packed base, which is shared in its own format.
    pub(crate) fn snapshot(&self, weights: EngineWeights) -> Result<Snapshot, ModelError> {
        if let Some(policy) = self.packed_policy()? {
            return Ok(Snapshot::Panels(policy));
        }
        if self.place.is_cpu() {
            return Ok(self.packed(weights)?.into());
        }
        Ok(self.tensor_weights()?.into())
    }

    /// Like [`Self::snapshot`], but consumes the model; on the CPU, each layer is freed after it is packed.
    pub(crate) fn into_snapshot(self, weights: EngineWeights) -> Result<Snapshot, ModelError> {
        let Self { config, parameters, lora, ropes, place, precision, .. } = self;
        let tensors = parameters.into_iter().map(|parameter| parameter.var().as_detached_tensor());
        let network = Network::arrange(&config, lora.as_ref(), tensors);
        Ok(if place.is_cpu() {
            let format = weights.format(precision);
            Weights::new(&config, ropes, network, precision, format)?.into()
        } else {
            TensorWeights::new(&config, ropes, network, precision)?.into()
        })
    }

    /// Copies the weights as tensors on their device, in the precision of products.
    pub(crate) fn tensor_weights(&self) -> Result<TensorWeights, ModelError> {
        let network = self.detached()?.try_map(&mut |tensor| tensor.force_contiguous())?;
        Ok(TensorWeights::new(&self.config, self.ropes.clone(), network, self.precision)?)
    }

    /// Copies the weights into panels for inference on the CPU, in the precision of products.
    #[cfg(test)]
    pub(crate) fn weights(&self) -> Result<Weights, ModelError> {
        self.packed(EngineWeights::Compute)
    }

    /// Copies the weights into panels for inference on the CPU.
    fn packed(&self, weights: EngineWeights) -> Result<Weights, ModelError> {
        let format = weights.format(self.precision);
        let (mut network, ropes) = (self.detached()?, self.ropes.clone());
        // The optimiser writes into the model's own.
        network.embedding = network.embedding.copy()?;
        Ok(Weights::new(&self.config, ropes, network, self.precision, format)?)
    }

    /// Arranges values in the order of the parameters into the network.
    pub(crate) fn arrange<T>(&self, values: impl IntoIterator<Item = T>) -> Network<T> {
        Network::arrange(&self.config, self.lora.as_ref(), values)
    }

    pub(crate) fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Iterates over the trainable parameters in order.
    pub(crate) fn trainable(&self) -> impl Iterator<Item = &Parameter> {
        self.parameters.iter().filter(|parameter| parameter.trainable)
    }

    pub(crate) fn trainable_specs(&self) -> Vec<Spec> {
        self.trainable().map(|parameter| parameter.spec.clone()).collect()
    }

    /// Returns the weights with a graph, so that results of trainable weights can be differentiated.
    pub(crate) fn tracked(&self) -> Network<Tensor> {
        self.arrange(self.parameters.iter().map(|parameter| {
            let var = parameter.var();
            if parameter.trainable { var.as_tensor().clone() } else { var.as_detached_tensor() }
        }))
    }

    /// Returns the weights without a graph; packed ones are copied.
    pub(crate) fn detached(&self) -> candle_core::Result<Network<Tensor>> {
        let tensors = self.parameters.iter().map(|parameter| match parameter.own() {
            Some(var) => Ok(var.as_detached_tensor()),
            None => Tensor::from_slice(
                &self.numbers(parameter)?,
                &parameter.spec.shape[..],
                &self.place,
            ),
        });
        Ok(self.arrange(tensors.collect::<candle_core::Result<Vec<_>>>()?))
    }

    /// Copies the weights, in the order of [`specs`].
    #[cfg(test)]
    pub(crate) fn values(&self) -> Result<Vec<Vec<f32>>, ModelError> {
        let copies = self.parameters.iter().map(|parameter| Ok(self.numbers(parameter)?.to_vec()));
        copies.collect()
    }

    /// Overwrites the weights with values in the order of [`specs`].
    #[cfg(test)]
    pub(crate) fn set_values(&self, values: Vec<Vec<f32>>) -> Result<(), ModelError> {
        for (parameter, values) in self.parameters.iter().zip(values) {
            let shape = parameter.spec.shape.clone();
            parameter.var().set(&Tensor::from_vec(values, shape, &self.place)?)?;
        }
        Ok(())
    }
}

/// Returns the operations that compute a model at a place, given a selection.
fn kernels_on(place: &Place, kernels: Kernels) -> Kernels {
    if !place.is_cpu() && kernels != Kernels::Plain {
        tracing::info!(device = %Device::of(place), "computed by the tensor library's operations (Kernels::Plain)");
        return Kernels::Plain;
    }
    kernels
}

/// Derives the width of a head from the weights.
fn head_width(tensors: &Tensors) -> Option<usize> {
    tensors.shape("model.layers.0.self_attn.k_norm.weight")?.first().copied()
}
