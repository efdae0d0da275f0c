//! The forward pass of a decoder, written once for every set of operations.

use candle_core::Result;
use serde::{Deserialize, Serialize};

use crate::layout::{FeedForward, Layer, Linear, Mlp, Network, SharedExpert};
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
    let x = ops.embed(&network.embedding)?;
    let mut x = scaled(ops, x, network.embedding_scale)?;
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
    let normed = before_head(ops, network, &selected)?;
    ops.predict(&normed, network.output_head())
}

/// Computes the rows whose products with the output head are logits. `[R, D]`
pub(crate) fn before_head<O: Ops>(
    ops: &mut O,
    network: &Network<O::Weight>,
    x: &O::Value,
) -> Result<O::Value> {
    let normed = ops.norm(x, &network.norm)?;
    scaled(ops, normed, network.logit_scale)
}

/// Computes one layer: attention and a feed-forward half, each added to the residual stream.
pub(crate) fn layer<O: Ops>(
    ops: &mut O,
    layer: &Layer<O::Weight>,
    x: &O::Value,
) -> Result<O::Value> {
    let (attending, scale) = (layer.attending, layer.residual_scale);
    let normed = normed(ops, x, layer.attention_norm.as_ref())?;
    let qkv = ops.linear(&normed, &layer.qkv)?;
    let qkv = ops.rotate_heads(&qkv, layer.head_norms.as_ref(), attending)?;
    let mixed = ops.attention(&qkv, attending)?;
    let after = layer.attention_norm_after.as_ref();
    let x = add_half(ops, x, &mixed, &layer.output, after, scale)?;
    let normed = self::normed(ops, &x, layer.mlp_norm.as_ref())?;
    match &layer.feed_forward {
        FeedForward::Dense(mlp) => {
            let inner = gated(ops, &normed, mlp)?;
            add_half(ops, &x, &inner, &mlp.down, layer.mlp_norm_after.as_ref(), scale)
        }
        FeedForward::Mixture(mixture) => {
            let x = ops.add_mixture(&x, &normed, mixture)?;
            let Some(SharedExpert { mlp, gate }) = &mixture.shared else { return Ok(x) };
            let inner = gated(ops, &normed, mlp)?;
            let output = ops.linear(&inner, std::slice::from_ref(&mlp.down))?;
            let gate = ops.linear(&normed, std::slice::from_ref(gate))?;
            ops.add_gated(&x, &output, &gate)
        }
    }
}

fn normed<O: Ops>(ops: &mut O, x: &O::Value, gain: Option<&O::Weight>) -> Result<O::Value> {
    match gain {
        Some(gain) => ops.norm(x, gain),
        None => Ok(x.clone()),
    }
}

fn scaled<O: Ops>(ops: &mut O, x: O::Value, factor: f32) -> Result<O::Value> {
    if factor == 1.0 { Ok(x) } else { ops.scale(&x, factor) }
}

/// Computes the inside of a feed-forward half. `[N, D]` to `[N, I]`
fn gated<O: Ops>(ops: &mut O, x: &O::Value, mlp: &Mlp<O::Weight>) -> Result<O::Value> {
    let gate_up = ops.linear(x, &mlp.gate_up)?;
    ops.gate(&gate_up, mlp.activation)
}

/// Adds the output of half a layer to the residual stream, normed and scaled if the model does so.
fn add_half<O: Ops>(
    ops: &mut O,
    onto: &O::Value,
    inner: &O::Value,
    linear: &Linear<O::Weight>,
    norm: Option<&O::Weight>,
    scale: f32,
) -> Result<O::Value> {
    if norm.is_none() && scale == 1.0 {
        return ops.add_linear(onto, inner, linear);
    }
    let output = ops.linear(inner, std::slice::from_ref(linear))?;
    let output = normed(ops, &output, norm)?;
    let output = scaled(ops, output, scale)?;
    ops.add(onto, &output)
}
