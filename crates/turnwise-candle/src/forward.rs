//! The forward pass of a decoder, written once for every set of operations.

use candle_core::Result;
use serde::{Deserialize, Serialize};

use crate::layout::{FeedForward, Layer, Network};
use crate::ops::Ops;

/// The operations that a model is trained and scored with. Both sets are differentiable and agree up to rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kernels {
    /// The tensor library's operations: the reference, several times slower.
    Plain,
    /// Fused operations of this crate: fewer passes over memory, no padding, no full logits, reused buffers.
    #[default]
    Fused,
}

/// Computes the residual stream after the last layer, before its norm. `[N, D]`
pub(crate) fn hidden<O: Ops>(ops: &mut O, network: &Network<O::Weight>) -> Result<O::Value> {
    let mut x = ops.embed(&network.embedding)?;
    for (index, layer) in network.layers.iter().enumerate() {
        x = ops.layer(index, layer, &x)?;
    }
    Ok(x)
}

/// Computes the batch's predictions. Most tokens of a conversation are context: only those before a target need logits.
pub(crate) fn predict<O: Ops>(
    ops: &mut O,
    network: &Network<O::Weight>,
    hidden: &O::Value,
) -> Result<()> {
    let selected = ops.select(hidden)?;
    let normed = ops.norm(&selected, &network.norm)?;
    ops.predict(&normed, network.output_head())
}

/// Computes one layer: attention and a feed-forward half, each added to the residual stream.
pub(crate) fn layer<O: Ops>(
    ops: &mut O,
    layer: &Layer<O::Weight>,
    x: &O::Value,
) -> Result<O::Value> {
    let normed = ops.norm(x, &layer.attention_norm)?;
    let qkv = ops.linear(&normed, &[&layer.query, &layer.key, &layer.value])?;
    let qkv = ops.rotate_heads(&qkv, layer.head_norms.as_ref())?;
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
