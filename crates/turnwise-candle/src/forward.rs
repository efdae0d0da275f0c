//! The differentiable forward pass.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::DecoderConfig;
use crate::batch::Batch;
use crate::fused;
use crate::layout::{Layer, Network};
use crate::plain;
use crate::rope::Rope;

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

impl Forward {
    pub(crate) fn new(config: &DecoderConfig, rope: Arc<Rope>, kernels: Kernels) -> Self {
        Self { heads: Heads::of(config), eps: config.rms_norm_eps, rope, kernels }
    }

    /// The log-probability of every target. `[M]`
    pub(crate) fn logprobs(&self, network: &Network<Tensor>, batch: &Batch) -> Result<Tensor> {
        if batch.n_targets() == 0 {
            return Tensor::zeros(0, DType::F32, &Device::Cpu);
        }
        // Most tokens of a conversation are context: only those that predict a target need logits.
        let hidden = self.hidden(network, batch)?.index_select(&batch.sources, 0)?;
        let hidden = self.norm(&hidden, &network.norm)?;
        let head = network.output_head();
        match self.kernels {
            Kernels::Plain => plain::logprobs(&hidden, head, batch),
            Kernels::Fused => fused::logprobs(&hidden, head, batch),
        }
    }

    /// The residual stream behind the last layer, before its norm. `[N, D]`
    pub(crate) fn hidden(&self, network: &Network<Tensor>, batch: &Batch) -> Result<Tensor> {
        let mut x = network.embedding.index_select(&batch.inputs, 0)?;
        for layer in &network.layers {
            x = (&x + self.attention(layer, &self.norm(&x, &layer.attention_norm)?, batch)?)?;
            x = (&x + self.mlp(layer, &self.norm(&x, &layer.mlp_norm)?)?)?;
        }
        Ok(x)
    }

    fn attention(&self, layer: &Layer<Tensor>, x: &Tensor, batch: &Batch) -> Result<Tensor> {
        let query = self.norm(&self.linear(x, &layer.query)?, &layer.query_norm)?;
        let key = self.norm(&self.linear(x, &layer.key)?, &layer.key_norm)?;
        let value = self.linear(x, &layer.value)?;
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

    fn mlp(&self, layer: &Layer<Tensor>, x: &Tensor) -> Result<Tensor> {
        let (gate, up) = (self.linear(x, &layer.gate)?, self.linear(x, &layer.up)?);
        let inner = match self.kernels {
            Kernels::Plain => gate.silu()? * up,
            Kernels::Fused => fused::swiglu(&gate, &up),
        };
        self.linear(&inner?, &layer.down)
    }

    /// `x` times the transpose of `weight`, `[out, in]`.
    fn linear(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        match self.kernels {
            Kernels::Plain => x.matmul(&weight.t()?),
            Kernels::Fused => fused::linear(x, weight),
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
