//! Archives of adapters.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Map, Value, json};

/// Returns an archive with one adapter for each module, and the configuration that SkyRL writes.
pub(crate) fn archive(modules: &[&str]) -> Vec<u8> {
    let config = json!({ "peft_type": "LORA", "r": 8, "lora_alpha": 32, "target_modules": null });
    pack(&[
        ("adapter_model.safetensors", weights(modules)),
        ("adapter_config.json", config.to_string().into_bytes()),
        ("README.md", b"# Model".to_vec()),
    ])
}

/// Returns tensors of one number each.
pub(crate) fn weights(modules: &[&str]) -> Vec<u8> {
    let mut header = Map::new();
    for (index, module) in modules.iter().enumerate() {
        for (half, part) in ["lora_A", "lora_B"].iter().enumerate() {
            let start = 8 * index + 4 * half;
            let name = format!("base_model.model.model.layers.0.{module}.{part}.weight");
            let tensor =
                json!({ "dtype": "F32", "shape": [1, 1], "data_offsets": [start, start + 4] });
            header.insert(name, tensor);
        }
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.resize(bytes.len() + 8 * modules.len(), 0);
    bytes
}

/// Returns an archive of files.
pub(crate) fn pack(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    let mut gzip = tar.into_inner().unwrap();
    gzip.flush().unwrap();
    gzip.finish().unwrap()
}
