//! The weights of a GGUF file.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use candle_core::Device;
use serde_json::{Map, Value};
use turnwise_rollout::Meter;

use super::config::interleaves;
use super::{GgufFile, gguf_place, plain};
use crate::checkpoint::{ParameterValues, Precision, grouped};
use crate::error::brief;
use crate::finite::{describe, first_not_finite};
use crate::layout::{ParameterRole, Spec, specs};
use crate::{Decoder, DecoderConfig, ModelError};

/// Tensors that are no parameters: factors of the rotary frequencies, which [`GgufFile::config`] reads.
const ROPE: [&str; 3] =
    ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

impl Decoder {
    /// Reads a GGUF file: quantised weights become f32. Such a model trains like any other, and is saved as a Hugging
    /// Face checkpoint.
    ///
    /// # Errors
    /// When the file is damaged, the model is not supported, a number is NaN or infinite, or tensors are missing,
    /// unknown or of another shape; the error names all of them.
    pub fn from_gguf(path: &Path, meter: &Meter) -> Result<Self, ModelError> {
        let file = GgufFile::open(path)?;
        let original: Map<String, Value> = file.config()?;
        let config = DecoderConfig::from_json(&original, None)?;
        let loaded = file.parameters(&config, meter)?;
        Self::from_parts(config, original, loaded, path)
    }
}

impl GgufFile {
    /// Reads all parameters of a model, in the order of [`specs`].
    fn parameters(
        &self,
        config: &DecoderConfig,
        meter: &Meter,
    ) -> Result<Vec<ParameterValues>, ModelError> {
        let specs = specs(config, None);
        let names = self.plan(config, &specs)?;
        let n_numbers: usize = specs.iter().map(Spec::len).sum();
        meter.begin(Meter::BYTES, 4 * n_numbers as u64);
        let mut parameters = Vec::with_capacity(specs.len());
        for (spec, name) in specs.iter().zip(names) {
            let mut values = self.numbers(&name)?;
            if let Some(index) = first_not_finite(&values) {
                let action = format!("load the weights in {}", self.path.display());
                let reason = describe(&name, &spec.shape, index, values[index]);
                return Err(ModelError::NotFinite { action, reason });
            }
            let is_rotated = name.contains(".attn_q.") || name.contains(".attn_k.");
            if is_rotated && interleaves(&config.architecture) {
                values = halved(&values, config.head_dim, values.len() / spec.shape[0].max(1));
            }
            if spec.role == ParameterRole::Norm {
                // Files hold the factor itself, and the family may add a number to the gain.
                let offset = config.architecture.properties().gain_offset;
                values.iter_mut().filter(|_| offset != 0.0).for_each(|gain| *gain -= offset);
            }
            meter.advance(4 * values.len() as u64);
            parameters.push(ParameterValues { values, precision: Precision::Single });
        }
        meter.end();
        Ok(parameters)
    }

    /// Returns the name of every parameter's tensor, or all mismatches.
    fn plan(&self, config: &DecoderConfig, specs: &[Spec]) -> Result<Vec<String>, ModelError> {
        let family = config.architecture.model_type();
        let (mut names, mut problems) = (Vec::with_capacity(specs.len()), Vec::new());
        for spec in specs {
            let first = spec.tensor_names().next().unwrap_or_default();
            let Some(place) = gguf_place(family, &first) else {
                problems.push(format!("{first} has no name in GGUF"));
                continue;
            };
            match self.shape(&place.name) {
                None => problems.push(format!("{} {:?} is missing", place.name, spec.shape)),
                Some(shape) if !same(shape, &spec.shape) => problems
                    .push(format!("{} is {shape:?} and must be {:?}", place.name, spec.shape)),
                Some(_) => {}
            }
            names.push(place.name);
        }
        let known: HashSet<&str> = names.iter().map(String::as_str).chain(ROPE).collect();
        let mut unknown: Vec<_> = self.header.tensor_infos.keys().collect();
        unknown.retain(|name| !known.contains(name.as_str()));
        unknown.sort_unstable();
        let beyond = |name: &str| {
            let layer = name.strip_prefix("blk.")?.split('.').next()?.parse::<usize>().ok()?;
            (layer >= config.n_layers).then_some(layer)
        };
        let layers: BTreeSet<usize> = unknown.iter().filter_map(|name| beyond(name)).collect();
        if let (Some(first), Some(last)) = (layers.first(), layers.last()) {
            let n_layers = config.n_layers;
            problems.push(format!(
                "the layers blk.{first} to blk.{last} are beyond the {n_layers} of its block_count"
            ));
        }
        unknown.retain(|name| beyond(name).is_none());
        problems.extend(unknown.iter().map(|name| format!("{} is not a part of it", brief(name))));
        if problems.is_empty() {
            return Ok(names);
        }
        Err(ModelError::Mismatch { directory: self.path.clone(), problems: grouped(problems) })
    }

    /// Reads a tensor as f32.
    pub(crate) fn numbers(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let read = || {
            let tensor = self.header.tensor(&mut &self.file, name, &Device::Cpu)?;
            tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()
        };
        read().map_err(|error: candle_core::Error| {
            self.malformed(format!("{} cannot be read: {}", brief(name), brief(plain(&error))))
        })
    }
}

/// Compares shapes: a vector may be stored as a matrix of one row, and the other way round.
fn same(stored: &[usize], wanted: &[usize]) -> bool {
    let without_ones = |shape: &[usize]| -> Vec<usize> {
        shape.iter().copied().filter(|size| *size != 1).collect()
    };
    stored == wanted || without_ones(stored) == without_ones(wanted)
}

/// Returns the rows of queries or keys in Hugging Face's order, in which the two elements of a rotary pair are half a
/// head apart; GGUF stores them side by side.
fn halved(values: &[f32], head_dim: usize, width: usize) -> Vec<f32> {
    let mut rows = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_dim * width) {
        let every_second = |first: usize| head.chunks_exact(width).skip(first).step_by(2);
        rows.extend(every_second(0).chain(every_second(1)).flatten());
    }
    rows
}
