//! Downloads from the Hugging Face Hub.

use std::path::PathBuf;

use hf_hub::{HFClientSync, HFResult};

use super::Repository;

/// The files of a model, without other formats of the same weights.
const FILES: [&str; 4] = ["*.safetensors", "*.json", "*.txt", "*.jinja"];

/// Downloads a model into the cache, with the token of Hugging Face's own tools, and returns its directory.
pub(super) fn fetch(repository: &Repository) -> HFResult<PathBuf> {
    let Repository { owner, name, revision } = repository;
    tracing::info!(owner, name, revision, "a model is fetched");
    HFClientSync::new()?
        .model(owner, name)
        .snapshot_download()
        .revision(revision)
        .allow_patterns(FILES.map(str::to_owned).to_vec())
        .send()
}
