//! Adapters as a Tinker server packs them, and as PEFT reads them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Cursor, Read};
use std::path::Path;

use flate2::read::GzDecoder;
use serde_json::{Map, Value, json};
use tar::Archive;

use super::client::Client;
use super::error::TinkerError;
use super::record::bad;
use crate::fault::ServerFault;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// The longest archive, and the longest weights in it.
const LONGEST: usize = 8 << 30;
/// The longest configuration, and the longest list of tensors.
const LONGEST_JSON: usize = 16 << 20;
/// The most files of an archive.
const MAX_ENTRIES: usize = 64;

/// Fetches the archive of weights that were saved to sample with.
pub(super) async fn download(client: &Client, path: &str) -> Result<Vec<u8>, ServerFault> {
    let (model, name) =
        parts(path).ok_or_else(|| ServerFault::Wrong(format!("`{path}` is no path of weights")))?;
    let route = format!("/api/v1/training_runs/{model}/checkpoints/{name}/archive");
    client.download(&route, LONGEST).await
}

/// Returns the model and the name in `tinker://model/name` or `tinker://model/kind/name`.
pub(super) fn parts(path: &str) -> Option<(&str, &str)> {
    let (model, rest) = path.strip_prefix("tinker://")?.split_once('/')?;
    let name = rest.rsplit_once('/').map_or(rest, |(_, name)| name);
    let is_plain = |part: &str| {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-_:".contains(&byte);
        !part.is_empty() && part.bytes().all(is_part)
    };
    (is_plain(model) && is_plain(name)).then_some((model, name))
}

/// Writes the adapter of an archive into a directory. Files of other names are left out.
pub(super) fn unpack(archive: &[u8], directory: &Path) -> Result<(), TinkerError> {
    let files =
        files(archive).map_err(|reason| bad(Path::new("the adapter's archive"), &reason))?;
    let wrong =
        |name: &str, reason: String| bad(&Path::new("the adapter's archive").join(name), &reason);
    let modules = modules(&files.weights).map_err(|reason| wrong(WEIGHTS, reason))?;
    let mut config: Map<String, Value> =
        serde_json::from_slice(&files.config).map_err(|error| wrong(CONFIG, error.to_string()))?;
    // Without names, PEFT would load the default modules alone and leave the others out.
    config.insert("target_modules".to_owned(), json!(modules));
    let text =
        serde_json::to_vec_pretty(&config).map_err(|error| wrong(CONFIG, error.to_string()))?;
    for (name, bytes) in [(WEIGHTS, &files.weights), (CONFIG, &text)] {
        let path = directory.join(name);
        fs::write(&path, bytes).map_err(|error| bad(&path, &error))?;
    }
    Ok(())
}

/// The two files of an adapter.
struct Files {
    config: Vec<u8>,
    weights: Vec<u8>,
}

fn files(archive: &[u8]) -> Result<Files, String> {
    let unpacked = GzDecoder::new(Cursor::new(archive)).take(2 * LONGEST as u64);
    let mut archive = Archive::new(unpacked);
    let (mut config, mut weights) = (None, None);
    let entries = archive.entries().map_err(|error| error.to_string())?;
    for (index, entry) in entries.enumerate() {
        let mut entry = entry.map_err(|error| error.to_string())?;
        if index == MAX_ENTRIES {
            return Err(format!("it has more than {MAX_ENTRIES} files"));
        }
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = entry.path().map_err(|error| error.to_string())?;
        let (place, longest) = match path.file_name().and_then(|name| name.to_str()) {
            Some(CONFIG) => (&mut config, LONGEST_JSON),
            Some(WEIGHTS) => (&mut weights, LONGEST),
            _ => continue,
        };
        let mut bytes = Vec::new();
        let read = (&mut entry).take(longest as u64 + 1).read_to_end(&mut bytes);
        if read.map_err(|error| error.to_string())? > longest {
            return Err(format!("a file has more than {longest} bytes"));
        }
        *place = Some(bytes);
    }
    let lacks = |name: &str| format!("it has no {name}");
    Ok(Files {
        config: config.ok_or_else(|| lacks(CONFIG))?,
        weights: weights.ok_or_else(|| lacks(WEIGHTS))?,
    })
}

/// Returns the names of the modules that have adapters, such as `q_proj`.
fn modules(weights: &[u8]) -> Result<BTreeSet<String>, String> {
    let (length, rest) = weights.split_first_chunk::<8>().ok_or("it is too short")?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let header = rest.get(..length).filter(|_| length <= LONGEST_JSON);
    let header = header.ok_or("its list of tensors is incomplete")?;
    let tensors: Map<String, Value> =
        serde_json::from_slice(header).map_err(|error| error.to_string())?;
    let names = tensors.keys().filter(|name| *name != "__metadata__");
    let modules: BTreeSet<String> = names.map(|name| module(name)).collect::<Result<_, _>>()?;
    if modules.is_empty() { Err("it has no tensors".to_owned()) } else { Ok(modules) }
}

fn module(tensor: &str) -> Result<String, String> {
    let short = crate::http::message(tensor);
    let (path, _) =
        tensor.split_once(".lora_").ok_or(format!("{short} is not part of an adapter"))?;
    Ok(path.rsplit_once('.').map_or(path, |(_, name)| name).to_owned())
}
