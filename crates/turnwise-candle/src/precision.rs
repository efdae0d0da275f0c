//! In which precision tensors are multiplied.

use candle_core::{DType, Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the products of a model's matrices and of its attention are computed in, by [`Kernels::Plain`](crate::Kernels).
///
/// Weights stay f32 and so do their gradients. Norms, rotary positions, softmax, the choice of experts and
/// log-probabilities are computed in f32 whatever this is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ComputePrecision {
    /// Single precision.
    #[default]
    F32,
    /// Both factors and the product are rounded to bfloat16; sums are longer. For devices that are good at it: the processor
    /// computes the same numbers in f32 and rounds them, which is slower than not to round.
    Bf16,
}

impl ComputePrecision {
    /// The type that factors are rounded to.
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// A product in f32, whose factors may be of the lower precision already.
    pub(crate) fn matmul(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let (a, b) = (a.to_dtype(self.dtype())?, b.to_dtype(self.dtype())?);
        if self == Self::F32 {
            return a.matmul(&b);
        }
        if a.device().is_cpu() {
            // The tensor library has no product of bfloat16 on the processor. That of f32 has the same factors and sums.
            let product = a.to_dtype(DType::F32)?.matmul(&b.to_dtype(DType::F32)?)?;
            return product.to_dtype(DType::BF16)?.to_dtype(DType::F32);
        }
        a.matmul(&b)?.to_dtype(DType::F32)
    }
}
