//! The forward pass of a decoder, written once for every set of operations.

use std::sync::Arc;

use candle_core::Result;
use serde::{Deserialize, Serialize};

use crate::DecoderConfig;
use crate::layout::{FeedForward, Layer, Network};
use crate::ops::Ops;
use crate::rope::Rope;

/// Which operations a model is trained and scored with. Both can be differentiated, and give the same to rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kernels {
    /// The tensor library's own: the reference, several times slower.
    Plain,
    /// Ours: fewer passes over memory, no padding, no logits held, memory used again.
    #[default]
    Fused,
}

/// How heads are laid out: `n_heads` queries, `n_kv_heads` keys and as many values side by side, `head_dim` each.
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

    /// Numbers of a token's queries, keys and values together.
    pub(crate) fn width(self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }

    /// What scores are multiplied by: one over the root of the head's width.
    pub(crate) fn scale(self) -> f32 {
        (1.0 / (self.head_dim as f64).sqrt()) as f32
    }
}

/// A forward pass for models of one size.
#[derive(Clone, Debug)]
pub(crate) struct Forward {
    pub(crate) hidden_size: usize,
    pub(crate) heads: Heads,
    pub(crate) eps: f64,
    pub(crate) rope: Arc<Rope>,
}

impl Forward {
    pub(crate) fn new(config: &DecoderConfig, rope: Arc<Rope>) -> Self {
        let hidden_size = config.hidden_size;
        Self { hidden_size, heads: Heads::of(config), eps: config.rms_norm_eps, rope }
    }

    /// The residual stream behind the last layer, before its norm. `[N, D]`
    pub(crate) fn hidden<O: Ops>(
        &self,
        ops: &mut O,
        network: &Network<O::Weight>,
    ) -> Result<O::Value> {
        let mut x = ops.embed(&network.embedding)?;
        for (index, layer) in network.layers.iter().enumerate() {
            x = ops.layer(self, index, layer, &x)?;
        }
        Ok(x)
    }

    /// The batch's predictions. Most tokens of a conversation are context: only those that predict a target need logits.
    #[expect(clippy::unused_self, reason = "an operation of the same object as the others")]
    pub(crate) fn predict<O: Ops>(
        &self,
        ops: &mut O,
        network: &Network<O::Weight>,
        hidden: &O::Value,
    ) -> Result<()> {
        let selected = ops.select(hidden)?;
        let normed = ops.norm(&selected, &network.norm)?;
        ops.predict(&normed, network.output_head())
    }

    /// One layer: attention and a feed-forward half, each added to the residual stream.
    #[expect(clippy::unused_self, reason = "an operation of the same object as the others")]
    pub(crate) fn layer<O: Ops>(
        &self,
        ops: &mut O,
        layer: &Layer<O::Weight>,
        x: &O::Value,
    ) -> Result<O::Value> {
        let normed = ops.norm(x, &layer.attention_norm)?;
        let qkv = ops.linear(&normed, &[&layer.query, &layer.key, &layer.value])?;
        let qkv = ops.turn(&qkv, layer.head_norms.as_ref())?;
        let mixed = ops.attention(&qkv)?;
        let x = ops.add_linear(x, &mixed, &layer.output)?;
        let normed = ops.norm(&x, &layer.mlp_norm)?;
        match &layer.feed_forward {
            FeedForward::Dense(mlp) => {
                let gate_up = ops.linear(&normed, &[&mlp.gate, &mlp.up])?;
                let inner = ops.swiglu(&gate_up)?;
                ops.add_linear(&x, &inner, &mlp.down)
            }
            FeedForward::Mixture(mixture) => ops.add_mixture(&x, &normed, mixture),
        }
    }
}
