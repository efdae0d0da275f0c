//! The device of a model.

use std::fmt;
use std::str::FromStr;

use candle_core::DeviceLocation;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The device that computes a model: in settings `cpu`, `cuda` for the first GPU, or `cuda:1` for the second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
#[non_exhaustive]
pub enum Device {
    /// The CPU.
    #[default]
    Cpu,
    /// The NVIDIA GPU of this index, from 0. Needs the feature `cuda`.
    Cuda(usize),
}

impl Device {
    /// Opens the device in the tensor library. Each call creates a new one, whose tensors do not mix with those of
    /// earlier ones.
    ///
    /// # Errors
    /// The reason when the device does not exist.
    pub(crate) fn open(self) -> Result<candle_core::Device, String> {
        match self {
            Self::Cpu => Ok(candle_core::Device::Cpu),
            Self::Cuda(_) if !cfg!(feature = "cuda") => {
                Err("this program was built without it; build it with `--features cuda`, as docs/cuda.md of the crate turnwise \
                     describes"
                    .to_owned())
            }
            Self::Cuda(index) => {
                candle_core::Device::new_cuda(index).map_err(|error| error.to_string())
            }
        }
    }

    pub(crate) fn of(device: &candle_core::Device) -> Self {
        match device.location() {
            DeviceLocation::Cuda { gpu_id } => Self::Cuda(gpu_id),
            // No other place can be created.
            _ => Self::Cpu,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(index) => write!(formatter, "cuda:{index}"),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let index = match text {
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some(0),
            _ => text.strip_prefix("cuda:").and_then(|index| index.parse().ok()),
        };
        index
            .map(Self::Cuda)
            .ok_or_else(|| format!("{text:?} is not a device; use cpu, cuda or cuda:0"))
    }
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_as_it_is_written() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(3)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1"] {
            assert!(text.parse::<Device>().unwrap_err().contains("is not a device"));
        }
    }
}
