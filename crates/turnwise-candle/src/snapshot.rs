//! Weights in the form that an engine computes with.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use turnwise_kernels::panels::PanelFormat;

use crate::dimensions::{Dimensions, Ropes};
use crate::finite::Culprit;
use crate::layout::{Adapter, FeedForward, Linear, Network, Spec, specs};
use crate::numbers::host_numbers;
use crate::weights::{LayerAdapters, StoredParameter, Weights};
use crate::{ComputePrecision, DecoderConfig, EngineWeights};

/// Weights of one version.
#[derive(Debug)]
pub(crate) enum Snapshot {
    /// Panels for the CPU's vector units.
    Panels(PackedPolicy),
    /// Tensors on any device.
    Tensors(Box<TensorWeights>),
}

/// Packed weights, and the adapters beside them if they are not merged.
#[derive(Clone, Debug)]
pub(crate) struct PackedPolicy {
    pub(crate) weights: Arc<Weights>,
    pub(crate) adapters: Option<Arc<PackedAdapters>>,
    /// The weights that these were converted from, if they were.
    converted_from: Option<Arc<Weights>>,
}

/// The adapters of a policy.
#[derive(Debug)]
pub(crate) struct PackedAdapters {
    pub(crate) layers: Vec<LayerAdapters>,
    /// As a learner has them, in the order of their matrices.
    pub(crate) stored: Vec<StoredAdapter>,
}

/// An adapter as a learner has it.
#[derive(Debug)]
pub(crate) struct StoredAdapter {
    /// The index of its matrix in the order of checkpoints.
    pub(crate) matrix: usize,
    /// Names and shapes of the two matrices.
    pub(crate) specs: [Spec; 2],
    pub(crate) adapter: Adapter<Vec<f32>>,
}

/// Immutable weights as tensors without a graph.
#[derive(Debug)]
pub(crate) struct TensorWeights {
    pub(crate) config: DecoderConfig,
    pub(crate) dimensions: Dimensions,
    /// Matrices have the type of the precision; gains, biases and routers are f32.
    pub(crate) network: Network<Tensor>,
    pub(crate) precision: ComputePrecision,
}

impl TensorWeights {
    /// Converts unshared f32 weights. Adapters are merged into their matrices before rounding.
    pub(crate) fn new(
        config: &DecoderConfig,
        ropes: Arc<Ropes>,
        network: Network<Tensor>,
        precision: ComputePrecision,
    ) -> Result<Self> {
        let mut network = network;
        for linear in network.linears_mut() {
            if let Some(Adapter { down, up, scale, .. }) = linear.adapter.take() {
                linear.weight = (&linear.weight + (up.matmul(&down)? * f64::from(scale))?)?;
            }
        }
        if precision != ComputePrecision::F32 {
            let exact = network.clone();
            network = network.try_map(&mut |tensor| {
                let is_matrix = tensor.rank() > 1;
                if is_matrix { tensor.to_dtype(precision.dtype()) } else { Ok(tensor) }
            })?;
            for (layer, exact) in network.layers.iter_mut().zip(exact.layers) {
                if let (FeedForward::Mixture(mixture), FeedForward::Mixture(exact)) =
                    (&mut layer.feed_forward, exact.feed_forward)
                {
                    mixture.router = exact.router;
                }
            }
        }
        let dimensions = Dimensions::new(config, ropes);
        Ok(Self { config: config.clone(), dimensions, network, precision })
    }

    pub(crate) fn device(&self) -> &Device {
        self.network.embedding.device()
    }

    /// Packs the weights into panels for the CPU.
    fn panels(&self, weights: EngineWeights) -> Result<Weights> {
        let single = &mut |tensor: Tensor| tensor.to_dtype(DType::F32);
        let network = self.network.clone().try_map(single)?;
        let (ropes, format) = (self.dimensions.ropes.clone(), weights.format(self.precision));
        Weights::new(&self.config, ropes, network, self.precision, format)
    }
}

impl PackedPolicy {
    pub(crate) fn new(weights: Arc<Weights>, adapters: Option<PackedAdapters>) -> Self {
        Self { weights, adapters: adapters.map(Arc::new), converted_from: None }
    }

    /// Returns the weights as tensors in f32, with merged adapters.
    fn network(&self) -> Result<Network<Tensor>> {
        let config = &self.weights.config;
        let mut adapters: &[_] = self.adapters.as_ref().map_or(&[], |adapters| &adapters.stored);
        let stored = specs(config, None).into_iter().zip(self.weights.stored()).enumerate();
        let tensors = stored.map(|(index, (spec, stored))| {
            if let StoredParameter::Tensor(tensor) = stored {
                return Ok(tensor.clone());
            }
            let mut numbers = stored.numbers()?;
            if let [StoredAdapter { matrix, adapter, .. }, rest @ ..] = adapters
                && *matrix == index
            {
                let adapter = Some(adapter.as_ref());
                numbers =
                    Linear { weight: &numbers[..], bias: None, adapter }.merged().into_owned();
                adapters = rest;
            }
            Tensor::from_vec(numbers, spec.shape, &Device::Cpu)
        });
        Ok(Network::arrange(config, None, tensors.collect::<Result<Vec<_>>>()?))
    }

    /// Packs the weights in another format; those of an earlier policy with the same base are taken over. Adapters stay as
    /// they are.
    fn converted(&self, format: PanelFormat, earlier: Option<&Snapshot>) -> Result<Self> {
        let weights = match earlier {
            Some(Snapshot::Panels(Self { weights, converted_from: Some(base), .. }))
                if Arc::ptr_eq(base, &self.weights) && weights.format == format =>
            {
                weights.clone()
            }
            _ => {
                let bare = Self { adapters: None, ..self.clone() };
                let own = &self.weights;
                let (ropes, precision) = (own.dimensions.ropes.clone(), own.precision);
                let network = bare.network()?;
                Arc::new(Weights::new(&own.config, ropes, network, precision, format)?)
            }
        };
        // Without adapters, the next publication has weights of its own.
        let converted_from = self.adapters.is_some().then(|| self.weights.clone());
        Ok(Self { weights, adapters: self.adapters.clone(), converted_from })
    }

    fn search(&self, culprit: &mut Culprit) -> Result<()> {
        let specs = specs(&self.weights.config, None);
        for (spec, stored) in specs.iter().zip(self.weights.stored()) {
            culprit.look(spec, &stored.numbers()?);
        }
        let adapters = self.adapters.iter().flat_map(|adapters| &adapters.stored);
        for StoredAdapter { specs, adapter: Adapter { down, up, .. }, .. } in adapters {
            for (spec, numbers) in specs.iter().zip([down, up]) {
                culprit.look(spec, numbers);
            }
        }
        Ok(())
    }
}

impl Snapshot {
    pub(crate) fn config(&self) -> &DecoderConfig {
        match self {
            Self::Panels(policy) => &policy.weights.config,
            Self::Tensors(weights) => &weights.config,
        }
    }

    /// Returns whether the weights are in the form of a publication; tensors have one form.
    pub(crate) fn has_form(&self, weights: EngineWeights) -> bool {
        match self {
            Self::Panels(policy) => {
                policy.weights.format == weights.format(policy.weights.precision)
            }
            Self::Tensors(_) => true,
        }
    }

    pub(crate) fn is_tensors(&self) -> bool {
        matches!(self, Self::Tensors(_))
    }

    /// Returns the precision of products.
    pub(crate) fn precision(&self) -> ComputePrecision {
        match self {
            Self::Panels(policy) => policy.weights.precision,
            Self::Tensors(weights) => weights.precision,
        }
    }

    /// Returns which weight makes logits NaN or infinite.
    pub(crate) fn culprit(&self) -> String {
        let mut culprit = Culprit::default();
        match self {
            Self::Panels(policy) => {
                if let Err(error) = policy.search(&mut culprit) {
                    return format!("the weights cannot be read: {error}");
                }
            }
            Self::Tensors(weights) => {
                let mut specs = specs(&weights.config, None).into_iter();
                let looked = weights.network.clone().try_map(&mut |tensor: Tensor| -> Result<()> {
                    let single = tensor.to_dtype(DType::F32)?;
                    if let Some(spec) = specs.next() {
                        culprit.look(&spec, &host_numbers(&single.contiguous()?)?);
                    }
                    Ok(())
                });
                if let Err(error) = looked {
                    return format!("the weights cannot be read: {error}");
                }
            }
        }
        culprit.reason()
    }

    /// Converts the weights to panels for the CPU; panels in the right format are returned unchanged. A frozen base that an
    /// earlier snapshot was converted from is not converted again.
    pub(crate) fn into_panels(
        self: Arc<Self>,
        weights: EngineWeights,
        earlier: Option<&Self>,
    ) -> Result<Arc<Self>> {
        match &*self {
            Self::Panels(policy) => {
                let format = weights.format(policy.weights.precision);
                if policy.weights.format == format {
                    return Ok(self);
                }
                Ok(Arc::new(Self::Panels(policy.converted(format, earlier)?)))
            }
            Self::Tensors(tensors) => Ok(Arc::new(tensors.panels(weights)?.into())),
        }
    }

    /// Converts the weights to tensors; tensors are returned unchanged.
    pub(crate) fn into_tensors(self: Arc<Self>) -> Result<Arc<Self>> {
        let Self::Panels(policy) = &*self else { return Ok(self) };
        let (network, weights) = (policy.network()?, &policy.weights);
        let (ropes, precision) = (weights.dimensions.ropes.clone(), ComputePrecision::F32);
        let weights = TensorWeights::new(&weights.config, ropes, network, precision)?;
        Ok(Arc::new(weights.into()))
    }
}

impl From<Weights> for Snapshot {
    fn from(weights: Weights) -> Self {
        Self::Panels(PackedPolicy::new(Arc::new(weights), None))
    }
}

impl From<TensorWeights> for Snapshot {
    fn from(weights: TensorWeights) -> Self {
        Self::Tensors(Box::new(weights))
    }
}
