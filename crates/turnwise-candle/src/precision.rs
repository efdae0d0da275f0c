//! Precision of tensor products.

use candle_core::{DType, Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The precision of products with matrices and of attention, for [`Kernels::Plain`](crate::Kernels).
///
/// Weights and gradients are always f32. So are norms, rotary position embedding, softmax, the choice of experts and
/// log-probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ComputePrecision {
    /// Single precision.
    #[default]
    F32,
    /// Rounds both factors and the product to bfloat16; sums have more precision. For devices with fast bfloat16: the
    /// CPU computes in f32 and rounds, which is slower than f32 alone.
    Bf16,
}

impl ComputePrecision {
    /// Returns the type that factors are rounded to.
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Computes a product in f32 from factors of either type.
    pub(crate) fn matmul(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let (a, b) = (a.to_dtype(self.dtype())?, b.to_dtype(self.dtype())?);
        if self == Self::F32 {
            return a.matmul(&b);
        }
        if a.device().is_cpu() {
            // The tensor library has no bfloat16 product on the CPU. The f32 product of rounded factors has the same
            // terms and sums.
            let product = a.to_dtype(DType::F32)?.matmul(&b.to_dtype(DType::F32)?)?;
            return product.to_dtype(DType::BF16)?.to_dtype(DType::F32);
        }
        a.matmul(&b)?.to_dtype(DType::F32)
    }
}
