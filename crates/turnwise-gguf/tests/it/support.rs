use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};

use serde_json::Value;
use turnwise_candle::{Architecture, Decoder, DecoderConfig};
use turnwise_rollout::{SampleRequest, SessionId};
use turnwise_trajectory::{PolicyVersion, Sampling};

/// The largest accepted difference of two implementations in single precision, in nats.
pub(crate) const ROUNDING: f32 = 5e-5;

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

pub(crate) fn fixture(name: &str) -> Decoder {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models");
    Decoder::from_directory(&models.join(name)).unwrap()
}

/// Returns a model of each family that the engine supports, with different sizes.
pub(crate) fn small(architecture: Architecture) -> DecoderConfig {
    DecoderConfig {
        architecture,
        max_positions: 160,
        tie_word_embeddings: false,
        ..DecoderConfig::small(97)
    }
}

pub(crate) fn families() -> [Architecture; 3] {
    let llama = Architecture::Llama { attention_bias: false, mlp_bias: false };
    [Architecture::default(), Architecture::Qwen2, llama]
}

/// Returns a random model with a distribution that is far from uniform, like a trained one: its embedding and its head
/// are scaled by `scale`.
pub(crate) fn peaked(config: DecoderConfig, seed: u64, scale: f32) -> Decoder {
    let directory = tempfile::tempdir().unwrap();
    Decoder::random(config, seed).unwrap().save(directory.path()).unwrap();
    let path = directory.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let offsets = &header[name]["data_offsets"];
        let (Some(start), Some(end)) = (offsets[0].as_u64(), offsets[1].as_u64()) else { continue };
        let range = 8 + length + start as usize..8 + length + end as usize;
        for number in bytes[range].chunks_exact_mut(4) {
            let scaled = scale * f32::from_le_bytes((&*number).try_into().unwrap());
            number.copy_from_slice(&scaled.to_le_bytes());
        }
    }
    fs::write(&path, bytes).unwrap();
    Decoder::from_directory(directory.path()).unwrap()
}

/// Returns tokens without a pattern.
pub(crate) fn tokens(seed: u32, length: u32, vocab_size: usize) -> Vec<u32> {
    let token = |i: u32| (seed * 31 + i * i * 7 + i * 3 + i / 5) % vocab_size as u32;
    (0..length).map(token).collect()
}

pub(crate) fn request(session: u64, prompt: Vec<u32>, max_tokens: usize) -> SampleRequest {
    SampleRequest {
        prompt,
        stop: Vec::new(),
        max_tokens,
        sampling: Sampling::default(),
        seed: 1000 + session,
        first_index: 0,
        min_version: PolicyVersion(0),
        session: SessionId(session),
    }
}

/// Returns the mean and the largest difference.
pub(crate) fn apart(ours: &[f32], theirs: &[f32]) -> (f32, f32) {
    assert_eq!(ours.len(), theirs.len());
    let differences: Vec<f32> = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).collect();
    let largest = differences.iter().copied().fold(0.0, f32::max);
    (differences.iter().sum::<f32>() / differences.len().max(1) as f32, largest)
}

pub(crate) fn temporary() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    (directory, path)
}
