//! Precision of products in training, and of the engine's matrices.

use candle_core::{DType, Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use turnwise_kernels::matrix::Accuracy;
use turnwise_kernels::panels::PanelFormat;

/// The precision of products with matrices.
///
/// Weights and gradients are always f32. So are norms, rotary position embedding, softmax, the choice of experts and
/// log-probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ComputePrecision {
    /// Single precision.
    #[default]
    F32,
    /// Rounds both factors to bfloat16, and sums in f32; the engine keeps its weights in bfloat16. Twice as fast as f32
    /// on processors with AVX-512-BF16 or AMX, and on graphics processors. The products of attention are in bfloat16 too; on
    /// processors those of training, in layers without a sliding window.
    Bf16,
}

/// The numbers of an engine's matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EngineWeights {
    /// Those of products in training.
    #[default]
    Compute,
    /// int8, with a scale for each 64 numbers of a column, in the engine on the CPU. Half the memory of bf16, and faster on
    /// processors with AVX-512-VNNI. The engine's log-probabilities then differ from the trainer's (`engine/mismatch_*`),
    /// as behaviour log-probabilities may: the ratio corrects for it.
    Int8,
}

impl EngineWeights {
    pub(crate) fn format(self, precision: ComputePrecision) -> PanelFormat {
        match self {
            Self::Compute => precision.panels(),
            Self::Int8 => PanelFormat::Int8,
        }
    }
}

impl ComputePrecision {
    /// Returns the type that factors are rounded to.
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Returns the accuracy of products in a forward pass.
    pub(crate) fn forward(self) -> Accuracy {
        match self {
            Self::F32 => Accuracy::Full,
            Self::Bf16 => Accuracy::Bf16,
        }
    }

    /// Returns the accuracy of products in a backward pass.
    pub(crate) fn backward(self) -> Accuracy {
        match self {
            Self::F32 => Accuracy::Gradient,
            Self::Bf16 => Accuracy::Bf16,
        }
    }

    /// Returns the format of the engine's matrices on a processor.
    pub(crate) fn panels(self) -> PanelFormat {
        match self {
            Self::F32 => PanelFormat::F32,
            Self::Bf16 => PanelFormat::Bf16,
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
