//! The metadata of a file: the keys of the GGUF specification, with the values of `llama.cpp`'s
//! `convert_hf_to_gguf.py`.

use candle_core::quantized::gguf_file::Value;
use turnwise_candle::{Architecture, DecoderConfig, Experts, RopeScaling};

use crate::{GgufError, Quantization};

/// The key by which `candle-transformers` chooses the precision of RoPE: 0 is F32. Without it, RoPE is computed in F16.
pub(crate) const DTYPE: &str = "general.dtype";

/// Returns the family's name in GGUF.
pub(crate) fn architecture(config: &DecoderConfig) -> Result<&'static str, GgufError> {
    Ok(match &config.architecture {
        Architecture::Llama { .. } => "llama",
        Architecture::Qwen2 => "qwen2",
        Architecture::Qwen3 { .. } => "qwen3",
        Architecture::Qwen3Moe { .. } => "qwen3moe",
        other => {
            return unsupported(format!(
                "only Llama, Qwen2, Qwen3 and Qwen3 with experts can be written here, and not {other:?}"
            ));
        }
    })
}

/// Returns keys and values, in the order of a file.
pub(crate) fn metadata(
    config: &DecoderConfig,
    quantization: Quantization,
) -> Result<Vec<(String, Value)>, GgufError> {
    refuse_biases(config)?;
    if config.sliding_window.is_some() {
        return unsupported("a sliding window, which readers of these families pass over");
    }
    let architecture = architecture(config)?;
    let text = |value: &str| Value::String(value.to_owned());
    let mut metadata = vec![
        ("general.architecture".to_owned(), text(architecture)),
        ("general.type".to_owned(), text("model")),
        ("general.file_type".to_owned(), Value::U32(quantization.file_type())),
        ("general.quantization_version".to_owned(), Value::U32(2)),
        (DTYPE.to_owned(), Value::U32(0)),
        // Readers of texts need a tokenizer; `none` says that tokens are numbers.
        ("tokenizer.ggml.model".to_owned(), text("none")),
    ];
    let own = sizes(config).into_iter().chain(rope(config)?).chain(experts(config)?);
    metadata.extend(own.map(|(key, value)| (format!("{architecture}.{key}"), value)));
    Ok(metadata)
}

fn sizes(config: &DecoderConfig) -> Vec<(&'static str, Value)> {
    let count = |size: usize| Value::U32(size as u32);
    vec![
        ("vocab_size", count(config.vocab_size)),
        ("context_length", count(config.max_positions)),
        ("embedding_length", count(config.hidden_size)),
        ("block_count", count(config.n_layers)),
        ("feed_forward_length", count(config.intermediate_size)),
        ("attention.head_count", count(config.n_heads)),
        ("attention.head_count_kv", count(config.n_kv_heads)),
        ("attention.key_length", count(config.head_dim)),
        ("attention.value_length", count(config.head_dim)),
        ("attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps as f32)),
        ("rope.dimension_count", count(config.head_dim)),
        ("rope.freq_base", Value::F32(config.rope_theta as f32)),
    ]
}

/// Returns the keys of RoPE scaling that the format has. Llama 3's scaling is a tensor ([`rope_factors`]).
fn rope(config: &DecoderConfig) -> Result<Vec<(&'static str, Value)>, GgufError> {
    let scaled = |kind: &str, factor: f64| {
        vec![
            ("rope.scaling.type", Value::String(kind.to_owned())),
            ("rope.scaling.factor", Value::F32(factor as f32)),
        ]
    };
    match config.rope_scaling {
        // Dynamic scaling begins beyond the context.
        RopeScaling::None | RopeScaling::Dynamic { .. } | RopeScaling::Llama3 { .. } => {
            Ok(Vec::new())
        }
        RopeScaling::Linear { factor } => Ok(scaled("linear", factor)),
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate,
            original_max_positions,
        } => {
            let usual = 0.1 * factor.ln() + 1.0;
            let is_standard = (beta_fast, beta_slow, truncate) == (32.0, 1.0, true);
            if !is_standard || (attention_factor - usual).abs() > 1e-6 {
                return unsupported(
                    "YaRN with other constants than the paper's, which readers take for granted",
                );
            }
            let original =
                ("rope.scaling.original_context_length", Value::U32(original_max_positions as u32));
            Ok(scaled("yarn", factor).into_iter().chain([original]).collect())
        }
        ref other => unsupported(format!("{other:?} has no place in GGUF that is known here")),
    }
}

/// Returns the wavelength factor of each pair of a head, for Llama 3's RoPE scaling. `[head_dim / 2]`
pub(crate) fn rope_factors(config: &DecoderConfig) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 { .. } = config.rope_scaling else { return None };
    let frequencies =
        |scaling: &RopeScaling| scaling.frequencies(config.rope_theta, config.head_dim);
    let pairs = frequencies(&RopeScaling::None).into_iter().zip(frequencies(&config.rope_scaling));
    Some(pairs.map(|(plain, scaled)| (plain / scaled) as f32).collect())
}

fn experts(config: &DecoderConfig) -> Result<Vec<(&'static str, Value)>, GgufError> {
    let Architecture::Qwen3Moe { experts, .. } = &config.architecture else {
        return Ok(Vec::new());
    };
    let Experts { n_experts, n_chosen, intermediate_size, renormalize, .. } = *experts;
    if experts.sparse_step != 1 || !experts.dense_layers.is_empty() || !renormalize {
        return unsupported(
            "in GGUF, every layer of a Qwen3 with experts has them, and the weights of those chosen are divided by their \
             sum",
        );
    }
    let count = |size: usize| Value::U32(size as u32);
    Ok(vec![
        ("expert_count", count(n_experts)),
        ("expert_used_count", count(n_chosen)),
        ("expert_feed_forward_length", count(intermediate_size)),
    ])
}

fn refuse_biases(config: &DecoderConfig) -> Result<(), GgufError> {
    match config.architecture {
        Architecture::Qwen3 { attention_bias: true }
        | Architecture::Qwen3Moe { attention_bias: true, .. } => {
            unsupported("readers pass over the biases of a Qwen3's attention")
        }
        _ => Ok(()),
    }
}

fn unsupported<T>(reason: impl Into<String>) -> Result<T, GgufError> {
    Err(GgufError::Unsupported(reason.into()))
}
