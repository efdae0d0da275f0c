//! What a decoder's forward pass is written in.

use candle_core::Result;

use crate::layout::{HeadNorms, Layer, Linear, Mixture};

/// Operations on the rows of one batch, and on weights. There are two sets: the tensor library's
/// ([`plain`](crate::plain)), on any device, and ours ([`tape`](crate::tape)), on the processor. Both can be differentiated.
pub(crate) trait Ops {
    /// A parameter.
    type Weight;
    /// Rows of numbers.
    type Value: Clone;

    /// The rows of the batch's tokens. `[V, D]` to `[N, D]`
    fn embed(&mut self, table: &Self::Weight) -> Result<Self::Value>;

    /// Each row over its root mean square, times the gain. `[N, D]`
    fn norm(&mut self, x: &Self::Value, gain: &Self::Weight) -> Result<Self::Value>;

    /// Products of the same rows, side by side. `[N, in]` to `[N, sum of out]`
    fn linear(&mut self, x: &Self::Value, linears: &[&Linear<Self::Weight>])
    -> Result<Self::Value>;

    /// A product added to what is there. `[N, out]`
    fn add_linear(
        &mut self,
        onto: &Self::Value,
        x: &Self::Value,
        linear: &Linear<Self::Weight>,
    ) -> Result<Self::Value>;

    /// Norms query and key heads where there are gains for it, and turns them to their positions.
    /// `[N, (n_heads + 2 n_kv_heads) * head_dim]`
    fn turn(
        &mut self,
        qkv: &Self::Value,
        norms: Option<&HeadNorms<Self::Weight>>,
    ) -> Result<Self::Value>;

    /// Causal attention of each token over its ancestors. To `[N, n_heads * head_dim]`
    fn attention(&mut self, qkv: &Self::Value) -> Result<Self::Value>;

    /// `silu(gate) * up`. `[N, 2 I]` to `[N, I]`
    fn swiglu(&mut self, gate_up: &Self::Value) -> Result<Self::Value>;

    /// The weighted sum of each token's experts, added to what is there. `[N, D]` both
    fn add_mixture(
        &mut self,
        onto: &Self::Value,
        x: &Self::Value,
        mixture: &Mixture<Self::Weight>,
    ) -> Result<Self::Value>;

    /// The rows behind which predictions stand. `[N, D]` to `[R, D]`
    fn select(&mut self, x: &Self::Value) -> Result<Self::Value>;

    /// Works out the predictions from their rows and the head. `[R, D]` and `[V, D]`
    fn predict(&mut self, x: &Self::Value, head: &Self::Weight) -> Result<()>;

    /// One layer; where activations are not kept, its input is all that is remembered of it.
    fn layer(
        &mut self,
        index: usize,
        layer: &Layer<Self::Weight>,
        x: &Self::Value,
    ) -> Result<Self::Value>;
}
