use half::{bf16, f16};
use safetensors::tensor::Dtype;

/// The number format of a tensor in a file; in memory all are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precision {
    Single,
    Brain,
    Half,
}

impl Precision {
    pub(crate) fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::Single),
            Dtype::BF16 => Some(Self::Brain),
            Dtype::F16 => Some(Self::Half),
            _ => None,
        }
    }

    pub(crate) fn dtype(self) -> Dtype {
        match self {
            Self::Single => Dtype::F32,
            Self::Brain => Dtype::BF16,
            Self::Half => Dtype::F16,
        }
    }

    /// Returns the bytes of a number.
    pub(crate) fn width(self) -> usize {
        match self {
            Self::Single => 4,
            Self::Brain | Self::Half => 2,
        }
    }

    /// Decodes `bytes` and appends the numbers, exactly: f32 holds every value of the other formats.
    pub(crate) fn decode(self, bytes: &[u8], numbers: &mut Vec<f32>) {
        match self {
            Self::Single => {
                numbers.extend(bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)));
            }
            Self::Brain => {
                let halves = bytes.as_chunks().0.iter();
                numbers.extend(halves.map(|half| bf16::from_le_bytes(*half).to_f32()));
            }
            Self::Half => {
                let halves = bytes.as_chunks().0.iter();
                numbers.extend(halves.map(|half| f16::from_le_bytes(*half).to_f32()));
            }
        }
    }

    /// Rounds a number to the nearest one of the format.
    pub(crate) fn rounded(self, number: f32) -> f32 {
        match self {
            Self::Single => number,
            Self::Brain => bf16::from_f32(number).to_f32(),
            Self::Half => f16::from_f32(number).to_f32(),
        }
    }

    /// Encodes numbers as bytes, rounded to the nearest.
    pub(crate) fn encode(self, numbers: &[f32]) -> Vec<u8> {
        let numbers = numbers.iter();
        match self {
            Self::Single => numbers.flat_map(|number| number.to_le_bytes()).collect(),
            Self::Brain => {
                numbers.flat_map(|number| bf16::from_f32(*number).to_le_bytes()).collect()
            }
            Self::Half => numbers.flat_map(|number| f16::from_f32(*number).to_le_bytes()).collect(),
        }
    }
}
