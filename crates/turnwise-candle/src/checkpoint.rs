//! Checkpoints in the format of Hugging Face.

mod files;
mod precision;
mod tensors;
mod write;

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

pub(crate) use files::{has_weights, is_whole};
pub(crate) use precision::Precision;
pub(crate) use tensors::{ParameterValues, Tensors, grouped};
pub(crate) use write::{Decode, Piece, Values, write_json, write_tensors};

use crate::ModelError;

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// The files of an adapter, by the names of PEFT.
pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";
pub(crate) const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Reads the JSON object in `config.json`.
pub(crate) fn read_config(directory: &Path) -> Result<Map<String, Value>, ModelError> {
    fs::read_dir(directory).map_err(|error| ModelError::read(directory, error))?;
    read_object(&directory.join(CONFIG))
}

pub(crate) fn read_object(path: &Path) -> Result<Map<String, Value>, ModelError> {
    let bytes = fs::read(path).map_err(|error| ModelError::read(path, error))?;
    serde_json::from_slice(&bytes).map_err(|error| ModelError::malformed(path, error.to_string()))
}
