//! `config.json`, in the forms of transformers 4 and 5.

mod refusals;
mod rope;

use serde_json::{Map, Value, json};

use crate::error::brief;
use crate::{Architecture, DecoderConfig, Experts, ModelError};

impl DecoderConfig {
    /// Reads the form of transformers and the older form of published checkpoints. Missing keys get the defaults of
    /// transformers.
    ///
    /// `head_width` is the width of a head according to the weights, for files without `head_dim`.
    pub(crate) fn from_json(
        json: &Map<String, Value>,
        head_width: Option<usize>,
    ) -> Result<Self, ModelError> {
        refusals::check(json)?;
        let n_heads = size(json, "num_attention_heads")?;
        let hidden_size = size(json, "hidden_size")?;
        let max_positions = optional_size(json, "max_position_embeddings")?;
        let max_positions = max_positions.unwrap_or(default_positions(json));
        let head_dim = optional_size(json, "head_dim")?.or(head_width);
        let rope = rope::read(json, max_positions)?;
        let config = Self {
            architecture: architecture(json)?,
            vocab_size: size(json, "vocab_size")?,
            hidden_size,
            intermediate_size: size(json, "intermediate_size")?,
            n_layers: size(json, "num_hidden_layers")?,
            n_heads,
            n_kv_heads: optional_size(json, "num_key_value_heads")?.unwrap_or(n_heads),
            head_dim: head_dim.unwrap_or(hidden_size / n_heads.max(1)),
            max_positions: rope.max_positions,
            rms_norm_eps: optional(json, "rms_norm_eps", 1e-6, Value::as_f64)?,
            rope_theta: rope.theta,
            rope_scaling: rope.scaling,
            tie_word_embeddings: optional(json, "tie_word_embeddings", false, Value::as_bool)?,
        };
        config.validate()?;
        Ok(config)
    }

    /// Writes the form of transformers, for a model that was created here.
    pub(crate) fn to_json(&self) -> Map<String, Value> {
        let mut json = object(json!({
            "architectures": [self.architecture.class()],
            "model_type": self.architecture.model_type(),
            "hidden_act": "silu",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "dtype": "float32",
            "torch_dtype": "float32",
        }));
        json.extend(rope::write(self.rope_theta, self.rope_scaling));
        json.extend(write_architecture(&self.architecture));
        json
    }
}

/// Replaces the type of the weights in `json`, under the keys that it uses.
pub(crate) fn with_dtype(mut json: Map<String, Value>, dtype: &str) -> Map<String, Value> {
    if !json.contains_key("dtype") && !json.contains_key("torch_dtype") {
        json.insert("dtype".to_owned(), dtype.into());
    }
    for key in ["dtype", "torch_dtype"] {
        if let Some(value) = json.get_mut(key) {
            *value = dtype.into();
        }
    }
    json
}

fn architecture(json: &Map<String, Value>) -> Result<Architecture, ModelError> {
    let attention_bias = optional(json, "attention_bias", false, Value::as_bool)?;
    Ok(match json.get("model_type").and_then(Value::as_str) {
        Some("llama") => {
            let mlp_bias = optional(json, "mlp_bias", false, Value::as_bool)?;
            Architecture::Llama { attention_bias, mlp_bias }
        }
        Some("qwen2") => Architecture::Qwen2,
        Some("qwen3_moe") => Architecture::Qwen3Moe { attention_bias, experts: experts(json)? },
        _ => Architecture::Qwen3 { attention_bias },
    })
}

fn experts(json: &Map<String, Value>) -> Result<Experts, ModelError> {
    // Published checkpoints have the first key, transformers 5 writes the second.
    let published = optional_size(json, "num_experts")?;
    let n_experts = match (published, optional_size(json, "num_local_experts")?) {
        (Some(one), Some(other)) if one != other => {
            return Err(bad(format!("num_experts is {one} and num_local_experts is {other}")));
        }
        (one, other) => one
            .or(other)
            .ok_or_else(|| bad("config.json has no num_experts and no num_local_experts"))?,
    };
    let dense_layers = match present(json, "mlp_only_layers") {
        None => Vec::new(),
        Some(layers) => serde_json::from_value(layers.clone()).map_err(|_| {
            bad(format!("mlp_only_layers is {} and must be a list of layers", brief(layers)))
        })?,
    };
    Ok(Experts {
        n_experts,
        n_chosen: optional_size(json, "num_experts_per_tok")?.unwrap_or(8),
        intermediate_size: size(json, "moe_intermediate_size")?,
        renormalize: optional(json, "norm_topk_prob", false, Value::as_bool)?,
        sparse_step: optional_size(json, "decoder_sparse_step")?.unwrap_or(1),
        dense_layers,
    })
}

fn write_architecture(architecture: &Architecture) -> Map<String, Value> {
    object(match architecture {
        Architecture::Llama { attention_bias, mlp_bias } => {
            json!({"attention_bias": attention_bias, "mlp_bias": mlp_bias})
        }
        Architecture::Qwen2 => json!({"use_sliding_window": false}),
        Architecture::Qwen3 { attention_bias } => json!({"attention_bias": attention_bias}),
        Architecture::Qwen3Moe { attention_bias, experts } => json!({
            "attention_bias": attention_bias,
            "num_experts": experts.n_experts,
            "num_experts_per_tok": experts.n_chosen,
            "moe_intermediate_size": experts.intermediate_size,
            "norm_topk_prob": experts.renormalize,
            "decoder_sparse_step": experts.sparse_step,
            "mlp_only_layers": experts.dense_layers,
        }),
    })
}

/// Returns the default of transformers for the number of positions.
fn default_positions(json: &Map<String, Value>) -> usize {
    if json.get("model_type").is_some_and(|kind| kind == "llama") { 2048 } else { 32_768 }
}

fn object(json: Value) -> Map<String, Value> {
    match json {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn bad(reason: impl Into<String>) -> ModelError {
    ModelError::BadConfig(reason.into())
}

/// Returns the value of a key; null counts as absent.
fn present<'a>(json: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    json.get(key).filter(|value| !value.is_null())
}

fn size(json: &Map<String, Value>, key: &str) -> Result<usize, ModelError> {
    optional_size(json, key)?.ok_or_else(|| bad(format!("config.json has no {key}")))
}

fn optional_size(json: &Map<String, Value>, key: &str) -> Result<Option<usize>, ModelError> {
    let read = |value: &Value| {
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| bad(format!("{key} is {} and must be a whole number", brief(value))))
    };
    present(json, key).map(read).transpose()
}

fn optional<T>(
    json: &Map<String, Value>,
    key: &str,
    default: T,
    read: fn(&Value) -> Option<T>,
) -> Result<T, ModelError> {
    match present(json, key) {
        None => Ok(default),
        Some(value) => read(value).ok_or_else(|| bad(format!("{key} is {}", brief(value)))),
    }
}
