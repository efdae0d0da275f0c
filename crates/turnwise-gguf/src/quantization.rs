use std::fmt;
use std::str::FromStr;

use candle_core::quantized::GgmlDType;
use serde::{Deserialize, Serialize};

use crate::GgufError;

/// The storage type of matrices. Norms, biases and a router stay F32, as is usual in the format.
///
/// A block shares its scale, and has to lie in one row. A matrix whose width does not fit the blocks of its type is
/// stored in [`Quantization::fitting`]: a type of about the same size or a larger one, and F16 if there is none.
///
/// ```
/// use turnwise_gguf::Quantization;
///
/// assert_eq!("q4_k".parse::<Quantization>()?, Quantization::Q4K);
/// assert_eq!(Quantization::Q4K.fitting(256), Quantization::Q4K);
/// assert_eq!(Quantization::Q4K.fitting(192), Quantization::Q5_0);
/// assert_eq!(Quantization::Q4K.fitting(96), Quantization::Q8_0);
/// assert_eq!(Quantization::Q4K.fitting(56), Quantization::F16);
/// # Ok::<(), turnwise_gguf::GgufError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Quantization {
    /// 32 bits: the trainer's numbers, unchanged.
    #[serde(rename = "f32")]
    F32,
    /// 16 bits. The engine here widens them again and computes in F32.
    #[serde(rename = "f16")]
    F16,
    /// 16 bits with the range of F32. The engine here widens them again and computes in F32.
    #[serde(rename = "bf16")]
    Bf16,
    /// 8.5 bits, in blocks of 32.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 6.6 bits, in blocks of 256.
    #[serde(rename = "q6_k")]
    Q6K,
    /// 6 bits, in blocks of 32, with a minimum.
    #[serde(rename = "q5_1")]
    Q5_1,
    /// 5.5 bits, in blocks of 32.
    #[serde(rename = "q5_0")]
    Q5_0,
    /// 5.5 bits, in blocks of 256.
    #[serde(rename = "q5_k")]
    Q5K,
    /// 5 bits, in blocks of 32, with a minimum.
    #[serde(rename = "q4_1")]
    Q4_1,
    /// 4.5 bits, in blocks of 32.
    #[serde(rename = "q4_0")]
    Q4_0,
    /// 4.5 bits, in blocks of 256.
    #[serde(rename = "q4_k")]
    Q4K,
    /// 3.4 bits, in blocks of 256.
    #[serde(rename = "q3_k")]
    Q3K,
    /// 2.6 bits, in blocks of 256.
    #[serde(rename = "q2_k")]
    Q2K,
}

impl Quantization {
    /// All types, from the most bits to the fewest.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q6K,
        Self::Q5_1,
        Self::Q5_0,
        Self::Q5K,
        Self::Q4_1,
        Self::Q4_0,
        Self::Q4K,
        Self::Q3K,
        Self::Q2K,
    ];

    /// Returns the name in settings and in an engine's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q6K => "q6_k",
            Self::Q5_1 => "q5_1",
            Self::Q5_0 => "q5_0",
            Self::Q5K => "q5_k",
            Self::Q4_1 => "q4_1",
            Self::Q4_0 => "q4_0",
            Self::Q4K => "q4_k",
            Self::Q3K => "q3_k",
            Self::Q2K => "q2_k",
        }
    }

    /// Returns the storage type of a matrix with rows of this width: like `llama.cpp`, falls back from a type with
    /// blocks of 256 to one with blocks of 32, and then to F16; and if `candle` needs an even number of blocks, to a
    /// type that allows an odd one.
    #[must_use]
    pub fn fitting(self, width: usize) -> Self {
        if width.is_multiple_of(self.unit()) {
            return self;
        }
        let smaller = match self {
            Self::Q2K | Self::Q3K | Self::Q4_1 => Self::Q4_0,
            Self::Q4K => Self::Q5_0,
            Self::Q5K => Self::Q5_1,
            Self::Q6K | Self::Q5_0 | Self::Q5_1 => Self::Q8_0,
            _ => return Self::F16,
        };
        smaller.fitting(width)
    }

    /// Returns the number of which a width must be a multiple.
    pub(crate) fn unit(self) -> usize {
        let block = self.ggml().block_size();
        // An assertion in candle's kernels, in builds with assertions.
        if matches!(self, Self::Q4_1 | Self::Q5_0 | Self::Q5_1) { 2 * block } else { block }
    }

    pub(crate) fn ggml(self) -> GgmlDType {
        match self {
            Self::F32 => GgmlDType::F32,
            Self::F16 => GgmlDType::F16,
            Self::Bf16 => GgmlDType::BF16,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q6K => GgmlDType::Q6K,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5K => GgmlDType::Q5K,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4K => GgmlDType::Q4K,
            Self::Q3K => GgmlDType::Q3K,
            Self::Q2K => GgmlDType::Q2K,
        }
    }

    /// Returns the type's number in `general.file_type`: `llama_ftype` of `llama.cpp`, in the variant without
    /// exceptions if there are several.
    pub(crate) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
            Self::Q5_0 => 8,
            Self::Q5_1 => 9,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 14,
            Self::Q5K => 16,
            Self::Q6K => 18,
            Self::Bf16 => 32,
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Quantization {
    type Err = GgufError;

    /// Parses a [`name`](Self::name).
    fn from_str(name: &str) -> Result<Self, GgufError> {
        Self::ALL.into_iter().find(|one| one.name() == name).ok_or_else(|| {
            let known: Vec<&str> = Self::ALL.iter().map(|one| one.name()).collect();
            GgufError::Unsupported(format!("`{name}` is none of {}", known.join(", ")))
        })
    }
}
