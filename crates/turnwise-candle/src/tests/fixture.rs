//! Reference models, and results that other implementations computed with them.

use std::fs;
use std::path::PathBuf;

use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::Value;

use crate::{Decoder, Device, Kernels};

pub(crate) const NAMES: [&str; 18] = [
    "gemma3_text",
    "granite",
    "llama",
    "llama_rope_dynamic",
    "llama_rope_llama3",
    "mistral_window",
    "mixtral",
    "olmo2",
    "phi3_longrope",
    "qwen2",
    "qwen2_moe",
    "qwen2_window",
    "qwen3_moe_nonorm",
    "qwen3_moe_norm",
    "qwen3_tied",
    "qwen3_untied",
    "qwen3_window",
    "smollm3",
];

pub(crate) struct Fixture {
    pub(crate) name: String,
    pub(crate) model: Decoder,
    pub(crate) expected: Value,
    pub(crate) tensors: Vec<u8>,
}

pub(crate) fn directory(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(name)
}

/// Returns a case from the field: a checkpoint that was once misread, with reference results.
pub(crate) fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/field").join(name)
}

impl Fixture {
    pub(crate) fn load(name: &str) -> Self {
        let directory = directory(name);
        let expected = fs::read(directory.join("expected.json")).unwrap();
        Self {
            name: name.to_owned(),
            model: Decoder::from_directory(&directory).unwrap(),
            expected: serde_json::from_slice(&expected).unwrap(),
            tensors: fs::read(directory.join("expected.safetensors")).unwrap(),
        }
    }

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        NAMES.into_iter().map(Self::load)
    }

    pub(crate) fn with_kernels(self, kernels: Kernels) -> Self {
        Self { model: self.model.with_kernels(kernels), ..self }
    }

    /// Returns the names of all sequences.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.expected["sequences"].as_object().unwrap().keys().cloned().collect()
    }

    pub(crate) fn ids(&self, key: &str) -> Vec<u32> {
        integers(&self.expected["sequences"][key]["input_ids"])
    }

    /// Returns a tensor of doubles.
    pub(crate) fn tensor(&self, name: &str) -> Vec<f64> {
        let tensors = SafeTensors::deserialize(&self.tensors).unwrap();
        let view = tensors.tensor(name).unwrap();
        assert_eq!(view.dtype(), Dtype::F64);
        view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// Returns a model of the tensor library's operations on every device of this build: the CPU, and with the feature
/// `cuda` the first GPU.
pub(crate) fn on_devices(make: impl Fn() -> Decoder) -> Vec<Decoder> {
    let devices = [Device::Cpu, Device::Cuda(0)];
    let built_for = |device: &Device| *device == Device::Cpu || cfg!(feature = "cuda");
    let model = |device| make().with_kernels(Kernels::Plain).with_device(device).unwrap();
    devices.into_iter().filter(built_for).map(model).collect()
}

pub(crate) fn integers(json: &Value) -> Vec<u32> {
    json.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

pub(crate) fn doubles(json: &Value) -> Vec<f64> {
    json.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

/// Returns the largest difference, after checking the lengths.
pub(crate) fn distance(ours: &[f32], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let differences = ours.iter().zip(theirs).map(|(a, b)| (f64::from(*a) - b).abs());
    differences.fold(0.0, |a, b| if b.is_nan() { f64::NAN } else { a.max(b) })
}

pub(crate) fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// Returns the relative error: the norm of the difference over the norm of the reference.
pub(crate) fn relative(ours: &[f32], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let differences = ours.iter().zip(theirs).map(|(a, b)| f64::from(*a) - b);
    norm(differences) / norm(theirs.iter().copied())
}
