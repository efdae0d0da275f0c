//! Export of a trained model to a GGUF file.

use std::fs::{self, File};
use std::io::{BufWriter, Cursor, Seek, Write};
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use turnwise_candle::{Architecture, Decoder, DecoderConfig, GgufPlace, gguf_place};

use crate::metadata::{metadata, rope_factors};
use crate::{GgufError, Quantization};

/// Writes a model as a GGUF file, under the names and keys of `llama.cpp`. Replaces an existing file when the new one
/// is complete.
///
/// Matrices are stored as [`Quantization`] says, everything else in F32. The file has no tokenizer.
///
/// # Errors
/// [`GgufError::Unsupported`] for a model that the format does not support, [`GgufError::Write`] if the file cannot be
/// written.
///
/// ```
/// use turnwise_candle::{Decoder, DecoderConfig};
/// use turnwise_gguf::{GgufModel, Quantization, save_gguf};
///
/// let model = Decoder::random(DecoderConfig::small(320), 7)?;
/// let path = std::env::temp_dir().join("turnwise-doc-example.gguf");
/// save_gguf(&model, &path, Quantization::Q8_0)?;
/// let mut read = GgufModel::from_file(&path)?;
/// assert_eq!(read.score(&[3, 1, 4])?.len(), 2);
/// # std::fs::remove_file(path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn save_gguf(
    model: &Decoder,
    path: &Path,
    quantization: Quantization,
) -> Result<(), GgufError> {
    let contents = Contents::of(model, quantization)?;
    let staged = path.with_extension("gguf.part");
    let failed = |source| GgufError::write(path, source);
    let mut file = BufWriter::new(File::create(&staged).map_err(failed)?);
    contents.write(&mut file).map_err(|error| failed(std::io::Error::other(error)))?;
    let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    fs::rename(&staged, path).map_err(failed)
}

/// Returns the bytes of the file that [`save_gguf`] writes.
///
/// # Errors
/// [`GgufError::Unsupported`] for a model that the format does not support.
pub fn gguf_bytes(model: &Decoder, quantization: Quantization) -> Result<Vec<u8>, GgufError> {
    let mut bytes = Cursor::new(Vec::new());
    Contents::of(model, quantization)?.write(&mut bytes)?;
    Ok(bytes.into_inner())
}

/// The content of a file.
struct Contents {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(String, QTensor)>,
}

impl Contents {
    fn of(model: &Decoder, quantization: Quantization) -> Result<Self, GgufError> {
        let config = model.config();
        let metadata = metadata(config, quantization)?;
        let family = config.architecture.model_type();
        let mut tensors = Vec::new();
        let mut stack = Vec::new();
        model.for_each_tensor(|name, shape, values| {
            let Some(GgufPlace { name, expert }) = gguf_place(family, name) else {
                return Err(GgufError::Unsupported(format!("{name} has no name in GGUF")));
            };
            let Some(expert) = expert else {
                let tensor = stored(config, &name, shape, values, quantization)?;
                tensors.push((name, tensor));
                return Ok(());
            };
            // Experts are adjacent, and the last one completes their tensor.
            stack.extend_from_slice(values);
            let n_experts = n_experts(config);
            if expert + 1 == n_experts {
                let shape = [&[n_experts], shape].concat();
                let tensor = quantized(&name, &std::mem::take(&mut stack), &shape, quantization)?;
                tensors.push((name, tensor));
            }
            Ok(())
        })?;
        if let Some(factors) = rope_factors(config) {
            let factors =
                quantized("rope_freqs.weight", &factors, &[factors.len()], Quantization::F32)?;
            tensors.push(("rope_freqs.weight".to_owned(), factors));
        }
        Ok(Self { metadata, tensors })
    }

    fn write(&self, to: &mut (impl Write + Seek)) -> candle_core::Result<()> {
        let metadata: Vec<_> =
            self.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let tensors: Vec<_> =
            self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        gguf_file::write(to, &metadata, &tensors)?;
        Ok(to.flush()?)
    }
}

fn n_experts(config: &DecoderConfig) -> usize {
    match &config.architecture {
        Architecture::Qwen3Moe { experts, .. } => experts.n_experts,
        _ => 0,
    }
}

fn stored(
    config: &DecoderConfig,
    name: &str,
    shape: &[usize],
    values: &[f32],
    quantization: Quantization,
) -> Result<QTensor, GgufError> {
    // A router distinguishes experts by small differences, and is small itself.
    let is_exact = shape.len() == 1 || name.ends_with("ffn_gate_inp.weight");
    let quantization = if is_exact { Quantization::F32 } else { quantization };
    if matches!(config.architecture, Architecture::Llama { .. })
        && (name.contains(".attn_q.") || name.contains(".attn_k."))
    {
        let width = values.len() / shape[0].max(1);
        let values = interleaved(values, config.head_dim, width);
        return quantized(name, &values, shape, quantization);
    }
    quantized(name, values, shape, quantization)
}

/// Returns the rows of a Llama's queries or keys in GGUF's order, in which the two elements of a RoPE pair are
/// adjacent; Hugging Face stores them half a head apart.
fn interleaved(values: &[f32], head_dim: usize, width: usize) -> Vec<f32> {
    let mut rows = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_dim * width) {
        let (first, second) = head.split_at(head.len() / 2);
        for (a, b) in first.chunks_exact(width).zip(second.chunks_exact(width)) {
            rows.extend_from_slice(a);
            rows.extend_from_slice(b);
        }
    }
    rows
}

fn quantized(
    name: &str,
    values: &[f32],
    shape: &[usize],
    quantization: Quantization,
) -> Result<QTensor, GgufError> {
    let tensor = Tensor::from_slice(values, shape, &Device::Cpu)?;
    let width = shape.last().copied().unwrap_or(1);
    let kind: GgmlDType = quantization.fitting(width).ggml();
    let stored = QTensor::quantize(&tensor, kind)?;
    // A 16-bit type ends at 65,504, and so do the scales of blocks.
    let values: Vec<f32> = stored.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()?;
    if let Some(value) = values.iter().find(|x| !x.is_finite()) {
        let reason = format!("{name} becomes {value} as {kind:?}; export it as f32");
        return Err(GgufError::NotFinite(reason));
    }
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_that_turn_together_stand_side_by_side() {
        // Two heads of four rows, one number wide.
        let rows = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
        assert_eq!(interleaved(&rows, 4, 1), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        // One head of two rows, two wide, stays as it is.
        assert_eq!(interleaved(&[0.0, 1.0, 2.0, 3.0], 2, 2), [0.0, 1.0, 2.0, 3.0]);
    }
}
