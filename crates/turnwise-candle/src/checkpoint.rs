//! Checkpoints in Hugging Face's form.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Map, Value};

use crate::ModelError;
use crate::layout::Spec;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The JSON object in `config.json`.
pub(crate) fn read_config(directory: &Path) -> Result<Map<String, Value>, ModelError> {
    fs::read_dir(directory).map_err(|error| ModelError::read(directory, error))?;
    read_object(&directory.join(CONFIG))
}

/// Writes `config.json` and `model.safetensors`. `values` come in the order of `specs`.
pub(crate) fn write_model(
    directory: &Path,
    config: &Map<String, Value>,
    specs: &[Spec],
    values: &[Vec<f32>],
) -> Result<(), ModelError> {
    let tensors = specs.iter().zip(values);
    let tensors = tensors.map(|(spec, values)| (spec.name.clone(), &spec.shape[..], &values[..]));
    write_tensors(&directory.join(WEIGHTS), tensors)?;
    let text = serde_json::to_string_pretty(config).expect("a JSON object can be written");
    replace(&directory.join(CONFIG), |path| fs::write(path, text + "\n"))
}

/// The weights of a checkpoint as f32, in the order of `specs`.
pub(crate) fn read_weights(directory: &Path, specs: &[Spec]) -> Result<Vec<Vec<f32>>, ModelError> {
    let mut found = BTreeMap::new();
    let mut problems = Vec::new();
    for file in weight_files(directory)? {
        read_tensors(&directory.join(file), specs, &mut found, &mut problems)?;
    }
    let tied = !specs.iter().any(|spec| spec.name == "lm_head.weight");
    let mut weights = Vec::new();
    for spec in specs {
        match found.remove(&spec.name) {
            Some(values) => weights.push(values),
            None if problems.iter().any(|problem| problem.starts_with(&spec.name)) => {}
            None => problems.push(format!("{} {:?} is missing", spec.name, spec.shape)),
        }
    }
    // Some exporters write a tied head as well; transformers ignores it too.
    problems.retain(|problem| !(tied && problem.starts_with("lm_head.weight ")));
    if problems.is_empty() {
        return Ok(weights);
    }
    Err(ModelError::Mismatch { directory: directory.to_owned(), problems })
}

/// Reads named f32 tensors that must all be there and nothing else. In the order of `specs`.
pub(crate) fn read_exactly(path: &Path, specs: &[Spec]) -> Result<Vec<Vec<f32>>, ModelError> {
    let (mut found, mut problems) = (BTreeMap::new(), Vec::new());
    read_tensors(path, specs, &mut found, &mut problems)?;
    let missing = specs.iter().filter(|spec| !found.contains_key(&spec.name));
    problems.extend(missing.map(|spec| format!("{} {:?} is missing", spec.name, spec.shape)));
    if !problems.is_empty() {
        return Err(ModelError::Mismatch { directory: path.to_owned(), problems });
    }
    Ok(specs.iter().map(|spec| found.remove(&spec.name).unwrap_or_default()).collect())
}

/// Writes f32 tensors into one file, which appears whole or not at all.
pub(crate) fn write_tensors<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (String, &'a [usize], &'a [f32])>,
) -> Result<(), ModelError> {
    let bytes: Vec<(String, &[usize], Vec<u8>)> = tensors
        .map(|(name, shape, values)| {
            (name, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes);
        (name, view.expect("a parameter has as many values as its shape says"))
    });
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    replace(path, |path| {
        safetensors::serialize_to_file(views, Some(metadata), path).map_err(io::Error::other)
    })
}

/// Writes beside the old file and renames, so that a crash leaves one or the other.
fn replace(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), ModelError> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    write(&unfinished)
        .and_then(|()| fs::File::open(&unfinished)?.sync_all())
        .and_then(|()| fs::rename(&unfinished, path))
        .map_err(|error| ModelError::write(path, error))
}

fn weight_files(directory: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let index = directory.join(INDEX);
    if !index.exists() {
        return Ok(vec![WEIGHTS.into()]);
    }
    let json = read_object(&index)?;
    let Some(map) = json.get("weight_map").and_then(Value::as_object) else {
        return Err(ModelError::malformed(&index, "it has no weight_map"));
    };
    let names: Option<BTreeSet<&str>> = map.values().map(Value::as_str).collect();
    let names = names.ok_or_else(|| ModelError::malformed(&index, "a file name is not text"))?;
    let files = names.into_iter().map(|name| {
        let path = PathBuf::from(name);
        let mut parts = path.components();
        // A checkpoint is data: it may not say which files elsewhere to read.
        match (parts.next(), parts.next()) {
            (Some(Component::Normal(_)), None) => Ok(path),
            _ => Err(ModelError::malformed(
                &index,
                format!("{name:?} is not a name in the directory"),
            )),
        }
    });
    files.collect()
}

fn read_object(path: &Path) -> Result<Map<String, Value>, ModelError> {
    let bytes = fs::read(path).map_err(|error| ModelError::read(path, error))?;
    serde_json::from_slice(&bytes).map_err(|error| ModelError::malformed(path, error.to_string()))
}

/// Adds the tensors of a file to `found`, and what does not fit `specs` to `problems`.
fn read_tensors(
    path: &Path,
    specs: &[Spec],
    found: &mut BTreeMap<String, Vec<f32>>,
    problems: &mut Vec<String>,
) -> Result<(), ModelError> {
    let bytes = fs::read(path).map_err(|error| ModelError::read(path, error))?;
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|error| ModelError::malformed(path, format!("{error} ({} bytes)", bytes.len())))?;
    let mut names = tensors.names();
    names.sort_unstable();
    for name in names {
        let view =
            tensors.tensor(name).map_err(|error| ModelError::malformed(path, error.to_string()))?;
        match specs.iter().find(|spec| spec.name == name) {
            // Old exporters stored the rotary frequencies, which follow from the configuration.
            None if name.ends_with("rotary_emb.inv_freq") => {}
            None => problems.push(format!("{name} {:?} is not a part of it", view.shape())),
            Some(spec) if spec.shape != view.shape() => {
                problems.push(format!("{name} is {:?} and must be {:?}", view.shape(), spec.shape));
            }
            Some(_) => match widen(&view) {
                Some(values) => drop(found.insert(name.to_owned(), values)),
                None => problems
                    .push(format!("{name} is {:?}; F32, BF16 and F16 are supported", view.dtype())),
            },
        }
    }
    Ok(())
}

fn widen(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let data = view.data();
    let halves = || data.chunks_exact(2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
    Some(match view.dtype() {
        Dtype::F32 => {
            let words = data.chunks_exact(4);
            words.map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect()
        }
        Dtype::BF16 => halves().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect(),
        Dtype::F16 => halves().map(widen_f16).collect(),
        _ => return None,
    })
}

/// Exact: every IEEE half is a single.
fn widen_f16(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let exponent = i32::from(bits >> 10 & 0x1f);
    let fraction = f32::from(bits & 0x3ff) / 1024.0;
    match exponent {
        0 => sign * fraction * 2.0_f32.powi(-14),
        31 if fraction == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        _ => sign * (1.0 + fraction) * 2.0_f32.powi(exponent - 15),
    }
}
