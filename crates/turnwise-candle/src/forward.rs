//! The differentiable forward pass.

use std::sync::Arc;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::ops::softmax;
use serde::{Deserialize, Serialize};

use crate::DecoderConfig;
use crate::balance::Routed;
use crate::batch::Batch;
use crate::fused;
use crate::layout::{FeedForward, Layer, Linear, Mixture, Mlp, Network};
use crate::plain;
use crate::rope::Rope;
use crate::routing::Routing;

/// Which operations a model is trained and scored with. Both can be differentiated, and give the same to rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kernels {
    /// The tensor library's own: the reference, several times slower.
    Plain,
    /// Ours: fewer passes over memory, no padding, no logits held.
    #[default]
    Fused,
}

/// How heads are laid out. `[N, n_heads * head_dim]` for queries, `[N, n_kv_heads * head_dim]` for keys and values.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_field_names, reason = "the names of the configuration")]
pub(crate) struct Heads {
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl Heads {
    pub(crate) fn of(config: &DecoderConfig) -> Self {
        let DecoderConfig { n_heads, n_kv_heads, head_dim, .. } = *config;
        Self { n_heads, n_kv_heads, head_dim }
    }

    /// Query heads that share a key head.
    pub(crate) fn group(self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// What scores are multiplied by: one over the root of the head's width.
    pub(crate) fn scale(self) -> f32 {
        (1.0 / (self.head_dim as f64).sqrt()) as f32
    }
}

/// A forward pass for models of one size.
#[derive(Clone, Debug)]
pub(crate) struct Forward {
    heads: Heads,
    eps: f64,
    rope: Arc<Rope>,
    kernels: Kernels,
}

/// What all layers make of a batch.
#[derive(Debug)]
pub(crate) struct Hidden {
    /// The residual stream behind the last layer, before its norm. `[N, D]`
    pub(crate) x: Tensor,
    /// What the routers of the layers with experts decided.
    pub(crate) routed: Vec<Routed>,
}

impl Forward {
    pub(crate) fn new(config: &DecoderConfig, rope: Arc<Rope>, kernels: Kernels) -> Self {
        Self { heads: Heads::of(config), eps: config.rms_norm_eps, rope, kernels }
    }

    /// The log-probability of every target. `[M]`
    pub(crate) fn logprobs(&self, network: &Network<Tensor>, batch: &Batch) -> Result<Tensor> {
        Ok(self.logprobs_and_routes(network, batch)?.0)
    }

    /// Also what the routers decided.
    pub(crate) fn logprobs_and_routes(
        &self,
        network: &Network<Tensor>,
        batch: &Batch,
    ) -> Result<(Tensor, Vec<Routed>)> {
        if batch.n_targets() == 0 {
            return Ok((Tensor::zeros(0, DType::F32, &Device::Cpu)?, Vec::new()));
        }
        let Hidden { x, routed } = self.hidden(network, batch)?;
        // Most tokens of a conversation are context: only those that predict a target need logits.
        let hidden = self.norm(&x.index_select(&batch.sources, 0)?, &network.norm)?;
        let head = network.output_head();
        let logprobs = match self.kernels {
            Kernels::Plain => plain::logprobs(&hidden, head, batch),
            Kernels::Fused => fused::logprobs(&hidden, head, batch),
        };
        Ok((logprobs?, routed))
    }

    /// The logits behind every token. `[N, V]`
    pub(crate) fn logits(&self, network: &Network<Tensor>, batch: &Batch) -> Result<Tensor> {
        let hidden = self.norm(&self.hidden(network, batch)?.x, &network.norm)?;
        self.product(&hidden, network.output_head())
    }

    pub(crate) fn hidden(&self, network: &Network<Tensor>, batch: &Batch) -> Result<Hidden> {
        let mut x = network.embedding.index_select(&batch.inputs, 0)?;
        let mut routed = Vec::new();
        for layer in &network.layers {
            x = (&x + self.attention(layer, &self.norm(&x, &layer.attention_norm)?, batch)?)?;
            let normed = self.norm(&x, &layer.mlp_norm)?;
            let change = match &layer.feed_forward {
                FeedForward::Dense(mlp) => self.mlp(mlp, &normed)?,
                FeedForward::Mixture(mixture) => {
                    let (change, decided) = self.mixture(mixture, &normed)?;
                    routed.push(decided);
                    change
                }
            };
            x = (&x + change)?;
        }
        Ok(Hidden { x, routed })
    }

    fn attention(&self, layer: &Layer<Tensor>, x: &Tensor, batch: &Batch) -> Result<Tensor> {
        let mut query = self.linear(x, &layer.query)?;
        let mut key = self.linear(x, &layer.key)?;
        let value = self.linear(x, &layer.value)?;
        if let Some(norms) = &layer.head_norms {
            query = self.norm(&query, &norms.query)?;
            key = self.norm(&key, &norms.key)?;
        }
        let mixed = match self.kernels {
            Kernels::Plain => {
                let (query, key) = (
                    plain::rope(&query, &self.rope, batch)?,
                    plain::rope(&key, &self.rope, batch)?,
                );
                plain::attention(&query, &key, &value, batch, self.heads)?
            }
            Kernels::Fused => {
                let query = fused::rope(&query, &self.rope, batch)?;
                let key = fused::rope(&key, &self.rope, batch)?;
                fused::attention(&query, &key, &value, batch, self.heads)?
            }
        };
        self.linear(&mixed, &layer.output)
    }

    fn mlp(&self, mlp: &Mlp<Tensor>, x: &Tensor) -> Result<Tensor> {
        let (gate, up) = (self.linear(x, &mlp.gate)?, self.linear(x, &mlp.up)?);
        self.linear(&self.swiglu(&gate, &up)?, &mlp.down)
    }

    /// Every token through the experts that its router prefers (Fedus et al., *Switch transformers*, 2021, equations 1 and
    /// 2, for more than one expert). The choice has no gradient; the weights of the chosen have.
    fn mixture(&self, mixture: &Mixture<Tensor>, x: &Tensor) -> Result<(Tensor, Routed)> {
        let probabilities = softmax(&self.product(x, &mixture.router)?, D::Minus1)?;
        let routed = Routed::new(probabilities, mixture.choice)?;
        let routing = &routed.routing;
        let rows = x.index_select(&ids(routing.tokens())?, 0)?;
        let gate = self.grouped(&rows, &mixture.gate, routing)?;
        let up = self.grouped(&rows, &mixture.up, routing)?;
        let outputs = self.grouped(&self.swiglu(&gate, &up)?, &mixture.down, routing)?;
        let weights = routed.weights(mixture.choice)?;
        let mixed = match self.kernels {
            Kernels::Plain => plain::combine(&outputs, &weights, routing),
            Kernels::Fused => fused::combine(&outputs, &weights, routing),
        };
        Ok((mixed?, routed))
    }

    fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        match self.kernels {
            Kernels::Plain => gate.silu()? * up,
            Kernels::Fused => fused::swiglu(gate, up),
        }
    }

    fn linear(&self, x: &Tensor, linear: &Linear<Tensor>) -> Result<Tensor> {
        let Some(bias) = &linear.bias else { return self.product(x, &linear.weight) };
        match self.kernels {
            Kernels::Plain => self.product(x, &linear.weight)?.broadcast_add(bias),
            Kernels::Fused => fused::affine(x, &linear.weight, bias),
        }
    }

    /// `x` times the transpose of `weight`, `[out, in]`.
    fn product(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        match self.kernels {
            Kernels::Plain => x.matmul(&weight.t()?),
            Kernels::Fused => fused::linear(x, weight),
        }
    }

    /// Each row times the transpose of its expert's matrix. `weight` is `[E, out, in]`.
    fn grouped(&self, x: &Tensor, weight: &Tensor, routing: &Arc<Routing>) -> Result<Tensor> {
        match self.kernels {
            Kernels::Plain => plain::grouped(x, weight, routing),
            Kernels::Fused => fused::grouped(x, weight, routing),
        }
    }

    /// Divides every piece as wide as `gain` by its root mean square.
    fn norm(&self, x: &Tensor, gain: &Tensor) -> Result<Tensor> {
        match self.kernels {
            Kernels::Plain => plain::rms_norm(x, gain, self.eps),
            Kernels::Fused => fused::rms_norm(x, gain, self.eps),
        }
    }
}

fn ids(ids: impl Iterator<Item = u32>) -> Result<Tensor> {
    let ids: Vec<u32> = ids.collect();
    let count = ids.len();
    Tensor::from_vec(ids, count, &Device::Cpu)
}
