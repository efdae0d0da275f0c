//! Refusal of models that the engine cannot run. The models of `candle-transformers` ignore what they do not know.

use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};

use crate::{GgufError, Quantization};

/// The maximal length of a sequence for which `quantized_llama` has positions.
const LLAMA_POSITIONS: usize = 4096;

/// A family that `candle-transformers` computes correctly on a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Llama,
    Qwen2,
    Qwen3,
}

/// The sizes of a model that the engine needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) family: Family,
    pub(crate) vocab_size: usize,
    pub(crate) max_positions: usize,
    /// The bytes of the KV cache per token, over all layers.
    pub(crate) kv_bytes_per_token: u64,
}

/// Returns the sizes of a supported model, and refuses all others.
pub(crate) fn check(content: &Content) -> Result<Sizes, GgufError> {
    let name = match content.metadata.get("general.architecture") {
        Some(Value::String(name)) => name.as_str(),
        _ => return Err(GgufError::Malformed("it has no general.architecture".to_owned())),
    };
    let family = match name {
        "llama" => Family::Llama,
        "qwen2" => Family::Qwen2,
        "qwen3" => Family::Qwen3,
        "qwen3moe" => {
            return unsupported("candle-transformers computes quantised experts on CUDA alone");
        }
        other => return unsupported(format!("`{other}` is none of llama, qwen2, qwen3")),
    };
    let size = |key: &str| size(content, &format!("{name}.{key}"));
    let (hidden, heads) = (size("embedding_length")?, size("attention.head_count")?);
    let kv_heads = size("attention.head_count_kv")?;
    let usual = hidden.checked_div(heads).unwrap_or(0);
    let head_dim = size("attention.key_length").unwrap_or(usual);
    if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(GgufError::Malformed(format!("{heads} heads cannot share {kv_heads} keys")));
    }
    check_scaling(content, name)?;
    check_tensors(content, family)?;
    if family != Family::Qwen3 && head_dim * heads != hidden {
        return unsupported(format!(
            "{heads} heads of {head_dim} in a width of {hidden}: candle-transformers has them share it"
        ));
    }
    let embedding = content.tensor_infos.get("token_embd.weight");
    let embedding =
        embedding.ok_or_else(|| GgufError::Malformed("it has no token_embd.weight".to_owned()))?;
    let written = size("context_length")?;
    let possible = if family == Family::Llama { LLAMA_POSITIONS } else { usize::MAX };
    Ok(Sizes {
        family,
        vocab_size: embedding.shape.dims().first().copied().unwrap_or(0),
        max_positions: written.min(possible),
        kv_bytes_per_token: (size("block_count")? * kv_heads * head_dim * 2 * 4) as u64,
    })
}

fn size(content: &Content, key: &str) -> Result<usize, GgufError> {
    let value = content.metadata.get(key).and_then(|value| value.to_u64().ok());
    let size = value.and_then(|value| usize::try_from(value).ok());
    size.ok_or_else(|| GgufError::Malformed(format!("it has no number under {key}")))
}

fn check_scaling(content: &Content, name: &str) -> Result<(), GgufError> {
    let kind = content.metadata.get(&format!("{name}.rope.scaling.type"));
    let is_scaled = match kind {
        None => false,
        Some(Value::String(kind)) => kind != "none",
        Some(_) => true,
    };
    if is_scaled || content.tensor_infos.contains_key("rope_freqs.weight") {
        return unsupported("scaled positions: candle-transformers would read past the scaling");
    }
    Ok(())
}

/// Checks tensors that tell what the architecture's name does not.
fn check_tensors(content: &Content, family: Family) -> Result<(), GgufError> {
    let is_bias = |name: &str| name.rsplit('.').next() == Some("bias");
    let read_past = |name: &&String| match family {
        // Biases on queries, keys and values distinguish a Qwen2.
        Family::Qwen2 => {
            is_bias(name)
                && !["attn_q", "attn_k", "attn_v"].iter().any(|module| name.contains(module))
        }
        Family::Llama | Family::Qwen3 => is_bias(name),
    };
    let unknown = |name: &&String| read_past(name) || name.contains("ffn_gate_inp");
    if let Some(name) = content.tensor_infos.keys().filter(unknown).min() {
        return unsupported(format!("candle-transformers would read past {name}"));
    }
    // A failing kernel takes candle's threads with it.
    let fits = |tensor: &TensorInfo| {
        let width = tensor.shape.dims().last().copied().unwrap_or(1);
        let known = Quantization::ALL.into_iter().find(|one| one.ggml() == tensor.ggml_dtype);
        known.is_some_and(|one| width.is_multiple_of(one.unit()))
    };
    let odd = content.tensor_infos.iter().filter(|(_, tensor)| !fits(tensor)).map(|(name, _)| name);
    match odd.min() {
        None => Ok(()),
        Some(name) => unsupported(format!("candle has no kernel for the type and width of {name}")),
    }
}

fn unsupported<T>(reason: impl Into<String>) -> Result<T, GgufError> {
    Err(GgufError::Unsupported(reason.into()))
}
