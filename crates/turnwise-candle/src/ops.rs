//! The operations of a decoder's forward pass.

use candle_core::Result;

use crate::architecture::Activation;
use crate::layout::{Attending, HeadNorms, Layer, Linear, Mixture};

/// Operations on the rows of a batch, and on weights. There are two sets: the tensor library's
/// ([`plain`](crate::plain)), on any device, and the fused ones ([`tape`](crate::tape)), on the CPU. Both are
/// differentiable.
pub(crate) trait Ops {
    /// A parameter.
    type Weight;
    /// Rows of numbers.
    type Value: Clone;

    /// Looks up the embeddings of the batch's tokens. `[V, D]` to `[N, D]`
    fn embed(&mut self, table: &Self::Weight) -> Result<Self::Value>;

    /// Applies RMSNorm. `[N, D]`
    fn norm(&mut self, x: &Self::Value, gain: &Self::Weight) -> Result<Self::Value>;

    /// Multiplies the same rows by several matrices, side by side. `[N, in]` to `[N, sum of out]`
    fn linear(&mut self, x: &Self::Value, linears: &[Linear<Self::Weight>]) -> Result<Self::Value>;

    /// Adds a product to rows. `[N, out]`
    fn add_linear(
        &mut self,
        onto: &Self::Value,
        x: &Self::Value,
        linear: &Linear<Self::Weight>,
    ) -> Result<Self::Value>;

    /// Applies QK-norm (if the model has it) and rotary position embedding. `[N, (n_heads + 2 n_kv_heads) * head_dim]`
    fn rotate_heads(
        &mut self,
        qkv: &Self::Value,
        norms: Option<&HeadNorms<Self::Weight>>,
        attending: Attending,
    ) -> Result<Self::Value>;

    /// Applies causal attention of each token over its ancestors in the layer's window. To `[N, n_heads * head_dim]`
    fn attention(&mut self, qkv: &Self::Value, attending: Attending) -> Result<Self::Value>;

    /// Applies `activation(gate) * up`. `[N, 2 I]` to `[N, I]`
    fn gate(&mut self, gate_up: &Self::Value, activation: Activation) -> Result<Self::Value>;

    /// Multiplies rows by a factor. `[N, D]`
    fn scale(&mut self, x: &Self::Value, factor: f32) -> Result<Self::Value>;

    /// Adds rows. `[N, D]` both
    fn add(&mut self, onto: &Self::Value, x: &Self::Value) -> Result<Self::Value>;

    /// Adds rows times the sigmoid of a number for each. `[N, D]`, `[N, D]` and `[N, 1]`
    fn add_gated(
        &mut self,
        onto: &Self::Value,
        x: &Self::Value,
        gate: &Self::Value,
    ) -> Result<Self::Value>;

    /// Adds the weighted sum of each token's experts. `[N, D]` both
    fn add_mixture(
        &mut self,
        onto: &Self::Value,
        x: &Self::Value,
        mixture: &Mixture<Self::Weight>,
    ) -> Result<Self::Value>;

    /// Selects the rows that predictions follow. `[N, D]` to `[R, D]`
    fn select(&mut self, x: &Self::Value) -> Result<Self::Value>;

    /// Computes the predictions from their rows and the head. `[R, D]` and `[V, D]`
    fn predict(&mut self, x: &Self::Value, head: &Self::Weight) -> Result<()>;

    /// Computes one layer; if activations are not kept, only its input is saved.
    fn layer(
        &mut self,
        index: usize,
        layer: &Layer<Self::Weight>,
        x: &Self::Value,
    ) -> Result<Self::Value>;
}
