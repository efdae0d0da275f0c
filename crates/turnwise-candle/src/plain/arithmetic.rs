//! Operations on single tokens, independent of attention.

use candle_core::{D, Result, Tensor};

use super::attention::Rotation;
use crate::ComputePrecision;
use crate::architecture::Activation;
use crate::dimensions::{Dimensions, Heads};
use crate::layout::{Adapter, HeadNorms, Linear};

/// Operations of a model of one size, on f32 values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arithmetic {
    pub(crate) heads: Heads,
    pub(crate) precision: ComputePrecision,
    eps: f64,
    /// Added to the stored gains of norms.
    gain_offset: f64,
}

impl Arithmetic {
    pub(crate) fn new(dimensions: &Dimensions, precision: ComputePrecision) -> Self {
        let gain_offset = f64::from(dimensions.gain_offset);
        Self { heads: dimensions.heads, precision, eps: dimensions.eps, gain_offset }
    }

    /// Applies RMSNorm to each piece of the gain's width.
    pub(crate) fn norm(self, x: &Tensor, gain: &Tensor) -> Result<Tensor> {
        let pieces = x.reshape(((), gain.dim(0)?))?;
        let root = (pieces.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?;
        let normed = pieces.broadcast_div(&root)?;
        if self.gain_offset == 0.0 {
            return normed.broadcast_mul(gain)?.reshape(x.shape());
        }
        normed.broadcast_mul(&(gain + self.gain_offset)?)?.reshape(x.shape())
    }

    /// Multiplies `[N, in]` by the transpose of `[out, in]`.
    pub(crate) fn by_rows(self, x: &Tensor, matrix: &Tensor) -> Result<Tensor> {
        self.precision.matmul(x, &matrix.t()?)
    }

    /// Multiplies by a matrix and adds its bias and its adapter's product.
    pub(crate) fn product(self, x: &Tensor, linear: &Linear<Tensor>) -> Result<Tensor> {
        let mut y = self.by_rows(x, &linear.weight)?;
        if let Some(bias) = &linear.bias {
            y = y.broadcast_add(bias)?;
        }
        let Some(Adapter { down, up, scale, .. }) = &linear.adapter else { return Ok(y) };
        y + (self.by_rows(&self.by_rows(x, down)?, up)? * f64::from(*scale))?
    }

    /// Multiplies by several matrices, side by side.
    pub(crate) fn linear(self, x: &Tensor, linears: &[Linear<Tensor>]) -> Result<Tensor> {
        let products = linears.iter().map(|linear| self.product(x, linear));
        Tensor::cat(&products.collect::<Result<Vec<_>>>()?, D::Minus1)
    }

    /// Splits rows into queries, keys and values.
    pub(crate) fn split(self, qkv: &Tensor) -> Result<[Tensor; 3]> {
        let Heads { n_heads, n_kv_heads, head_dim, .. } = self.heads;
        let (queries, keys) = (n_heads * head_dim, n_kv_heads * head_dim);
        let part = |start, width| qkv.narrow(1, start, width);
        Ok([part(0, queries)?, part(queries, keys)?, part(queries + keys, keys)?])
    }

    pub(crate) fn rotate_heads(
        self,
        qkv: &Tensor,
        norms: Option<&HeadNorms<Tensor>>,
        rotation: Option<&Rotation>,
    ) -> Result<Tensor> {
        let [mut query, mut key, value] = self.split(qkv)?;
        if let Some(norms) = norms {
            query = self.norm(&query, &norms.query)?;
            key = self.norm(&key, &norms.key)?;
        }
        if let Some(rotation) = rotation {
            query = rotation.rotate_heads(&query, self.heads.head_dim)?;
            key = rotation.rotate_heads(&key, self.heads.head_dim)?;
        }
        Tensor::cat(&[query, key, value], 1)
    }
}

/// Applies `activation(gate) * up` to rows with gate and up side by side.
pub(crate) fn gate(gate_up: &Tensor, activation: Activation) -> Result<Tensor> {
    let halves = gate_up.chunk(2, D::Minus1)?;
    let gate = match activation {
        Activation::Silu => halves[0].silu()?,
        Activation::GeluTanh => halves[0].gelu()?,
    };
    gate * &halves[1]
}

/// Adds rows times the sigmoid of a number for each. `[N, D]`, `[N, D]` and `[N, 1]`
pub(crate) fn add_gated(onto: &Tensor, x: &Tensor, gate: &Tensor) -> Result<Tensor> {
    let share = ((gate.neg()?.exp()? + 1.0)?).recip()?;
    onto + x.broadcast_mul(&share)?
}
