//! A language model with its weights.

mod culprit;
mod passes;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device as Place, Tensor, Var};
use serde_json::{Map, Value};
use turnwise_kernels::buffer::BufferPool;
use turnwise_rollout::Meter;

use crate::balance::balance_loss;
use crate::batch::{CHUNK_TOKENS, Cut, PackedBatch, ScoredSequence};
use crate::checkpoint::{self, CONFIG, ParameterValues, Piece, Precision, Tensors, WEIGHTS};
use crate::config::with_dtype;
use crate::dimensions::Dimensions;
use crate::finite::{describe, first_not_finite};
use crate::forward::Kernels;
use crate::layout::{Linear, Network, Spec, specs};
use crate::numbers::host_numbers;
use crate::pass::Pass;
use crate::rope::Rope;
use crate::snapshot::{Snapshot, TensorWeights};
use crate::tape::Keep;
use crate::weights::Weights;
use crate::{
    ComputePrecision, DecoderConfig, Device, LoraSettings, ModelError, forms, initial, threads,
};

/// A language model with its weights: f32, on the processor unless they are put [elsewhere](Self::with_device).
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
    /// Its adapters, if it has any.
    lora: Option<LoraSettings>,
    /// Where it was read from.
    directory: Option<PathBuf>,
    /// `config.json` as it was read, or as it is for a model made here.
    original: Map<String, Value>,
    kernels: Kernels,
    precision: ComputePrecision,
    place: Place,
    rope: Arc<Rope>,
    pool: Arc<BufferPool>,
}

/// A trainable tensor.
#[derive(Debug)]
pub(crate) struct Parameter {
    pub(crate) spec: Spec,
    /// Always f32.
    pub(crate) var: Var,
    /// How it was written in the file it was read from.
    pub(crate) precision: Precision,
    /// Whether training moves it.
    pub(crate) trainable: bool,
}

impl Decoder {
    /// Reads a Hugging Face checkpoint: `config.json` with `model.safetensors` or shards and their index. F32, BF16 and F16
    /// weights become f32, each tensor read straight into its place. The experts of a layer may lie one by one or in the two
    /// tensors of transformers 5, and the matrix of a tied model may be stored under the name of the head.
    ///
    /// # Errors
    /// When a file is missing or damaged, the model is not one this crate computes, a number is NaN or infinite, or tensors are
    /// missing, unknown or of another shape; all of them are named.
    pub fn from_directory(directory: &Path) -> Result<Self, ModelError> {
        Self::from_directory_metered(directory, &Meter::default())
    }

    /// Like [`Self::from_directory`], and tells `meter` how many bytes of the weights have been read.
    ///
    /// # Errors
    /// As [`Self::from_directory`].
    pub fn from_directory_metered(directory: &Path, meter: &Meter) -> Result<Self, ModelError> {
        if let Some(help) = forms::in_directory(directory) {
            return Err(ModelError::NotFound { model: directory.to_owned(), help });
        }
        let original = checkpoint::read_config(directory)?;
        let tensors = Tensors::in_directory(directory);
        let head_width = tensors.as_ref().ok().and_then(head_width);
        let config = DecoderConfig::from_json(&original, head_width)?;
        let loaded = tensors?.read(&specs(&config, None), meter)?;
        let model = Self::from_loaded(config, original, loaded)?;
        Ok(Self { directory: Some(directory.to_owned()), ..model })
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
        let values = initial::values(&config, seed).into_iter();
        let loaded = values.map(|values| ParameterValues { values, precision: Precision::Single });
        let original = config.to_json();
        Self::from_loaded(config, original, loaded.collect())
    }

    /// Writes `config.json` and `model.safetensors` into an existing directory, as transformers reads them: under the names
    /// of the checkpoint it was read from, in the precision of each tensor there, with the same configuration.
    ///
    /// Weights that were read as BF16 or F16 are rounded to it again; what training added below that is lost. The
    /// checkpoints of [`CandleLearner`](crate::CandleLearner) keep F32. Adapters are written as a part of the matrices that they
    /// are added to; [`Self::save_adapter`] writes them alone.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, directory: &Path) -> Result<(), ModelError> {
        let meter = Meter::default();
        self.write(directory, &self.original, |parameter| parameter.precision, &meter)
    }

    /// The same in F32, so that training can go on where it was.
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
        self.with_linears(|linears| {
            let own = self.parameters.iter().zip(linears);
            let own = own.filter(|(parameter, _)| !parameter.spec.role.is_adapter());
            let pieces = own.flat_map(|(parameter, linear)| {
                let (spec, adapter) = (&parameter.spec, linear.adapter);
                let size = (spec.len() / spec.n_tensors()).max(1);
                let (precision, shape) = (precision(parameter), spec.tensor_shape());
                let tensors = spec.tensor_names().zip(linear.weight.chunks_exact(size));
                tensors.map(move |(name, values)| Piece { name, shape, values, adapter, precision })
            });
            checkpoint::write_tensors(&directory.join(WEIGHTS), pieces, meter)
        })??;
        checkpoint::write_json(&directory.join(CONFIG), config)
    }

    /// The same model computed by other operations. Away from the processor there are only those of [`Kernels::Plain`], and
    /// asking for others there changes nothing.
    #[must_use]
    pub fn with_kernels(self, kernels: Kernels) -> Self {
        Self { kernels: kernels_on(&self.place, kernels), ..self }
    }

    /// The same model with its weights on a device, which computes what is asked of it from then on: scores, training, and the
    /// draws of its policies. Away from the processor it is computed by [`Kernels::Plain`], whatever it was before.
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
    /// [`ModelError::NoDevice`] when there is no such device, or this program was built without the feature for it.
    pub fn with_device(self, device: Device) -> Result<Self, ModelError> {
        let place = device.open().map_err(|reason| ModelError::NoDevice { device, reason })?;
        self.moved(place)
    }

    /// The same with its weights there. What is there already stays as it is.
    pub(crate) fn moved(mut self, place: Place) -> Result<Self, ModelError> {
        if place.same_device(&self.place) {
            return Ok(self);
        }
        for parameter in &mut self.parameters {
            let values = parameter.var.as_detached_tensor().to_device(&place)?;
            parameter.var = Var::from_tensor(&values)?;
        }
        Ok(Self { kernels: kernels_on(&place, self.kernels), place, ..self })
    }

    /// The same model multiplied in another precision.
    ///
    /// # Errors
    /// When its operations have only f32.
    pub(crate) fn with_precision(self, precision: ComputePrecision) -> Result<Self, ModelError> {
        if precision != ComputePrecision::F32 && self.kernels != Kernels::Plain {
            let reason = "a compute precision of bf16 needs the tensor library's operations (Kernels::Plain); those for \
                          the processor have f32 alone";
            return Err(ModelError::Settings(reason.to_owned()));
        }
        Ok(Self { precision, ..self })
    }

    /// Where the weights are.
    #[must_use]
    pub fn device(&self) -> Device {
        Device::of(&self.place)
    }

    /// The sizes.
    #[must_use]
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// How many numbers it has; a tied embedding counts once.
    #[must_use]
    pub fn n_parameters(&self) -> usize {
        self.parameters.iter().map(|parameter| parameter.spec.len()).sum()
    }

    /// Shows each tensor of the checkpoint in turn: its name in Hugging Face's files, its shape, and its numbers row by row.
    /// Experts come one by one, as they lie in files; a tied head does not come again, and adapters are in the matrices they
    /// are added to.
    ///
    /// # Errors
    /// The first one of `visit`, [`ModelError::NotFinite`] for a number that is NaN or infinite, or that weights cannot be read.
    pub fn for_each_tensor<E: From<ModelError>>(
        &self,
        mut visit: impl FnMut(&str, &[usize], &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.with_linears(|linears| {
            let own = self.parameters.iter().zip(linears);
            for (Parameter { spec, .. }, linear) in own.filter(|(p, _)| !p.spec.role.is_adapter()) {
                let size = (spec.len() / spec.n_tensors()).max(1);
                for (name, values) in spec.tensor_names().zip(linear.merged().chunks_exact(size)) {
                    if let Some(index) = first_not_finite(values) {
                        let reason = describe(&name, spec.tensor_shape(), index, values[index]);
                        let action = "read the weights".to_owned();
                        return Err(ModelError::NotFinite { action, reason }.into());
                    }
                    visit(&name, spec.tensor_shape(), values)?;
                }
            }
            Ok(())
        })?
    }

    /// How many of them train: all, or those of its adapters.
    #[must_use]
    pub fn n_trainable(&self) -> usize {
        self.trainable().map(|parameter| parameter.spec.len()).sum()
    }

    /// Its adapters, if it has any.
    #[must_use]
    pub fn lora(&self) -> Option<&LoraSettings> {
        self.lora.as_ref()
    }

    /// Where it was read from; `None` for a model made here.
    pub(crate) fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// Log-probabilities at temperature 1: entry `t` of a sequence is that of `ids[t + 1]` given `ids[..=t]`, in nats.
    /// A sequence of one token or none has none.
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

    /// Entropies of the distributions at temperature 1 that [`Self::score`] is about, in nats.
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

    /// A list for each sequence, from forward passes over some of them at a time.
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

    /// Logits at temperature 1: row `t` is about the token after `ids[..=t]`. A row per token, as wide as the vocabulary.
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

    /// How unevenly the experts are used by the tokens of these sequences: `E sum_e f_e P_e`, with `f_e` the share of
    /// tokens that use expert `e` and `P_e` its mean probability, over all layers with experts. It is the number of experts
    /// for each token when all are used alike. `None` for a model without experts.
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
            Ok(Parameter { spec, var, precision, trainable: true })
        });
        let parameters = parameters.collect::<Result<_, ModelError>>()?;
        let rope = Arc::new(Rope::new(
            &config.rope_scaling,
            config.rope_theta,
            config.head_dim,
            config.max_positions,
        ));
        Ok(Self {
            config,
            parameters,
            lora: None,
            directory: None,
            original,
            kernels: Kernels::default(),
            precision: ComputePrecision::default(),
            place: Place::Cpu,
            rope,
            pool: Arc::default(),
        })
    }

    /// The same model with other parameters, made of its own.
    pub(crate) fn rearranged(
        self,
        lora: Option<LoraSettings>,
        arrange: impl FnOnce(&mut std::vec::IntoIter<Parameter>) -> Result<Vec<Parameter>, ModelError>,
    ) -> Result<Self, ModelError> {
        let parameters = arrange(&mut self.parameters.into_iter())?;
        Ok(Self { parameters, lora, ..self })
    }

    /// The same model with weights of its own, which no optimiser moves. What does not train is shared.
    pub(crate) fn frozen_copy(&self) -> Result<Self, ModelError> {
        let copies =
            self.trainable().map(|parameter| Var::from_tensor(&parameter.var.as_detached_tensor()));
        Ok(self.sharing(copies.collect::<candle_core::Result<_>>()?))
    }

    /// A model that shares with this one what does not train, and has these values in the place of what does, in the order of
    /// the parameters.
    pub(crate) fn beside(&self, trained: Vec<Vec<f32>>) -> Result<Self, ModelError> {
        let vars = trained.into_iter().zip(self.trainable()).map(|(values, parameter)| {
            Var::from_vec(values, parameter.spec.shape.clone(), &self.place)
        });
        Ok(self.sharing(vars.collect::<candle_core::Result<_>>()?))
    }

    /// The same with variables for what trains.
    fn sharing(&self, trained: Vec<Var>) -> Self {
        let mut trained = trained.into_iter();
        let parameters = self.parameters.iter().map(|parameter| {
            let Parameter { spec, var, precision, trainable } = parameter;
            let own = if *trainable { trained.next() } else { None };
            let var = own.unwrap_or_else(|| var.clone());
            Parameter { spec: spec.clone(), var, precision: *precision, trainable: *trainable }
        });
        Self {
            config: self.config.clone(),
            parameters: parameters.collect(),
            lora: self.lora.clone(),
            directory: self.directory.clone(),
            original: self.original.clone(),
            kernels: self.kernels,
            precision: self.precision,
            place: self.place.clone(),
            rope: self.rope.clone(),
            pool: Arc::default(),
        }
    }

    /// Takes the weights of another model of the same parameters, which are where this one's are.
    pub(crate) fn take_weights(&mut self, other: Self) {
        for (own, other) in self.parameters.iter_mut().zip(other.parameters) {
            own.var = other.var;
        }
    }

    pub(crate) fn dimensions(&self) -> Dimensions {
        Dimensions::new(&self.config, self.rope.clone())
    }

    pub(crate) fn kernels(&self) -> Kernels {
        self.kernels
    }

    pub(crate) fn precision(&self) -> ComputePrecision {
        self.precision
    }

    /// Where the weights are, as the tensor library knows it.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn pool(&self) -> &Arc<BufferPool> {
        &self.pool
    }

    /// A copy for inference where the weights are, with adapters in the matrices they are added to: laid out for the processor
    /// there, and as tensors elsewhere.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, ModelError> {
        if self.place.is_cpu() {
            return Ok(Snapshot::Panels(self.weights()?));
        }
        Ok(Snapshot::Tensors(self.tensor_weights()?))
    }

    /// The same without a second copy: on the processor each part of the model goes when it has been laid out.
    pub(crate) fn into_snapshot(self) -> Result<Snapshot, ModelError> {
        let Self { config, parameters, lora, rope, place, precision, .. } = self;
        let tensors = parameters.into_iter().map(|parameter| parameter.var.into_inner().detach());
        let network = Network::arrange(&config, lora.as_ref(), tensors);
        Ok(if place.is_cpu() {
            Snapshot::Panels(Weights::new(&config, rope, network)?)
        } else {
            Snapshot::Tensors(TensorWeights::new(&config, rope, network, precision)?)
        })
    }

    /// A copy as tensors where the weights are, in the precision that products have.
    pub(crate) fn tensor_weights(&self) -> Result<TensorWeights, ModelError> {
        let network = self.detached().try_map(&mut |tensor| tensor.force_contiguous())?;
        Ok(TensorWeights::new(&self.config, self.rope.clone(), network, self.precision)?)
    }

    /// A copy laid out for inference on the processor.
    pub(crate) fn weights(&self) -> Result<Weights, ModelError> {
        Ok(Weights::new(&self.config, self.rope.clone(), self.detached())?)
    }

    /// Puts values in the order of the parameters in their places.
    pub(crate) fn arrange<T>(&self, values: impl IntoIterator<Item = T>) -> Network<T> {
        Network::arrange(&self.config, self.lora.as_ref(), values)
    }

    /// Shows the numbers of every parameter in its order, each with the adapter that is added to it.
    pub(crate) fn with_linears<R>(
        &self,
        see: impl FnOnce(&[Linear<&[f32]>]) -> R,
    ) -> Result<R, ModelError> {
        let held = self.parameters.iter().map(|parameter| host_numbers(&parameter.var));
        let held = held.collect::<candle_core::Result<Vec<_>>>()?;
        let bare =
            held.iter().map(|values| Linear { weight: &**values, bias: None, adapter: None });
        let mut linears: Vec<Linear<&[f32]>> = bare.collect();
        for linear in self.arrange(0..held.len()).linears() {
            linears[linear.weight].adapter =
                linear.adapter.map(|adapter| adapter.map(&mut |index| &*held[index]));
        }
        Ok(see(&linears))
    }

    pub(crate) fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Those that training moves, in their order.
    pub(crate) fn trainable(&self) -> impl Iterator<Item = &Parameter> {
        self.parameters.iter().filter(|parameter| parameter.trainable)
    }

    pub(crate) fn trainable_specs(&self) -> Vec<Spec> {
        self.trainable().map(|parameter| parameter.spec.clone()).collect()
    }

    /// The weights with a graph: what is computed from those that train can be differentiated.
    pub(crate) fn tracked(&self) -> Network<Tensor> {
        self.arrange(self.parameters.iter().map(|Parameter { var, trainable, .. }| {
            if *trainable { var.as_tensor().clone() } else { var.as_detached_tensor() }
        }))
    }

    /// The same weights without a graph.
    pub(crate) fn detached(&self) -> Network<Tensor> {
        self.arrange(self.parameters.iter().map(|parameter| parameter.var.as_detached_tensor()))
    }

    /// Copies of the weights, in the order of [`specs`].
    #[cfg(test)]
    pub(crate) fn values(&self) -> Result<Vec<Vec<f32>>, ModelError> {
        let copies =
            self.parameters.iter().map(|parameter| Ok(host_numbers(&parameter.var)?.to_vec()));
        copies.collect()
    }

    /// Overwrites the weights with values in the order of [`specs`].
    #[cfg(test)]
    pub(crate) fn set_values(&self, values: Vec<Vec<f32>>) -> Result<(), ModelError> {
        for (parameter, values) in self.parameters.iter().zip(values) {
            let shape = parameter.spec.shape.clone();
            parameter.var.set(&Tensor::from_vec(values, shape, &self.place)?)?;
        }
        Ok(())
    }
}

/// The operations that a model is computed by at a place, when it was asked for some.
fn kernels_on(place: &Place, kernels: Kernels) -> Kernels {
    if !place.is_cpu() && kernels != Kernels::Plain {
        tracing::info!(device = %Device::of(place), "computed by the tensor library's operations (Kernels::Plain)");
        return Kernels::Plain;
    }
    kernels
}

/// What the weights say of the width of a head.
fn head_width(tensors: &Tensors) -> Option<usize> {
    tensors.shape("model.layers.0.self_attn.k_norm.weight")?.first().copied()
}
