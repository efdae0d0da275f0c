//! Weights in the form that an engine computes with.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use crate::dimensions::{Dimensions, Ropes};
use crate::finite::Culprit;
use crate::layout::{Adapter, FeedForward, Network, specs};
use crate::numbers::host_numbers;
use crate::weights::Weights;
use crate::{ComputePrecision, DecoderConfig, EngineWeights};

/// Weights of one version.
#[derive(Debug)]
pub(crate) enum Snapshot {
    /// Panels for the CPU's vector units.
    Panels(Weights),
    /// Tensors on any device.
    Tensors(TensorWeights),
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

/// Returns packed weights as tensors in f32.
fn network_of(weights: &Weights) -> Result<Network<Tensor>> {
    let values = specs(&weights.config, None).into_iter().zip(weights.stored());
    let tensors = values
        .map(|(spec, values)| Tensor::from_vec(values, spec.shape, &Device::Cpu))
        .collect::<Result<Vec<_>>>()?;
    Ok(Network::arrange(&weights.config, None, tensors))
}

impl Snapshot {
    pub(crate) fn config(&self) -> &DecoderConfig {
        match self {
            Self::Panels(weights) => &weights.config,
            Self::Tensors(weights) => &weights.config,
        }
    }

    pub(crate) fn is_tensors(&self) -> bool {
        matches!(self, Self::Tensors(_))
    }

    /// Returns the precision of products.
    pub(crate) fn precision(&self) -> ComputePrecision {
        match self {
            Self::Panels(weights) => weights.precision,
            Self::Tensors(weights) => weights.precision,
        }
    }

    /// Returns which weight makes logits NaN or infinite.
    pub(crate) fn culprit(&self) -> String {
        let mut culprit = Culprit::default();
        match self {
            Self::Panels(weights) => {
                let mut specs = specs(&weights.config, None).into_iter();
                weights.each_stored(|values| {
                    if let Some(spec) = specs.next() {
                        culprit.look(&spec, &values);
                    }
                });
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

    /// Converts the weights to panels for the CPU; panels in the right format are returned unchanged.
    pub(crate) fn into_panels(self: Arc<Self>, weights: EngineWeights) -> Result<Arc<Self>> {
        match &*self {
            Self::Panels(panels) if panels.format == weights.format(panels.precision) => Ok(self),
            Self::Panels(panels) => {
                let network = network_of(panels)?;
                let (ropes, precision) = (panels.dimensions.ropes.clone(), panels.precision);
                let format = weights.format(precision);
                let panels = Weights::new(&panels.config, ropes, network, precision, format)?;
                Ok(Arc::new(Self::Panels(panels)))
            }
            Self::Tensors(tensors) => Ok(Arc::new(Self::Panels(tensors.panels(weights)?))),
        }
    }

    /// Converts the weights to tensors; tensors are returned unchanged.
    pub(crate) fn into_tensors(self: Arc<Self>) -> Result<Arc<Self>> {
        let Self::Panels(weights) = &*self else { return Ok(self) };
        let network = network_of(weights)?;
        let (ropes, precision) = (weights.dimensions.ropes.clone(), ComputePrecision::F32);
        let weights = TensorWeights::new(&weights.config, ropes, network, precision)?;
        Ok(Arc::new(Self::Tensors(weights)))
    }
}

impl From<Weights> for Snapshot {
    fn from(weights: Weights) -> Self {
        Self::Panels(weights)
    }
}

impl From<TensorWeights> for Snapshot {
    fn from(weights: TensorWeights) -> Self {
        Self::Tensors(weights)
    }
}
