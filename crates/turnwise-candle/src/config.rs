use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::ModelError;

/// Which family of decoders a model belongs to: where its norms and biases are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Architecture {
    /// `RMSNorm` before each half layer and on each query and key head, rotary positions, grouped-query attention without
    /// biases, SwiGLU. Source: Qwen3 Technical Report, section 2; `modeling_qwen3.py` of transformers.
    #[default]
    Qwen3,
}

/// The sizes of a decoder.
///
/// ```
/// use turnwise_candle::DecoderConfig;
///
/// let config = DecoderConfig { max_positions: 128, ..DecoderConfig::small(320) };
/// assert!(config.validate().is_ok());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderConfig {
    /// The family.
    #[serde(default)]
    pub architecture: Architecture,
    /// How many tokens it knows.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward half.
    pub intermediate_size: usize,
    /// How many layers.
    pub n_layers: usize,
    /// How many query heads; a multiple of `n_kv_heads`.
    pub n_heads: usize,
    /// How many key and value heads.
    pub n_kv_heads: usize,
    /// Width of one head; even. Independent of `hidden_size / n_heads`.
    pub head_dim: usize,
    /// The longest sequence.
    pub max_positions: usize,
    /// Added to the mean square before its root.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
}

impl DecoderConfig {
    /// A model that trains on two processor cores in seconds: 2 layers of width 64, 256 positions.
    #[must_use]
    pub fn small(vocab_size: usize) -> Self {
        Self {
            architecture: Architecture::Qwen3,
            vocab_size,
            hidden_size: 64,
            intermediate_size: 192,
            n_layers: 2,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 16,
            max_positions: 256,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            tie_word_embeddings: true,
        }
    }

    /// Whether these sizes can be a model.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`] that names the field and what it must be.
    pub fn validate(&self) -> Result<(), ModelError> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("head_dim", self.head_dim),
            ("max_positions", self.max_positions),
        ];
        if let Some((name, size)) = sizes.iter().find(|(_, size)| *size == 0 || *size > 1 << 28) {
            return Err(bad(format!("{name} is {size} and must lie from 1 to 2^28")));
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(bad(format!(
                "n_heads ({}) must be a multiple of n_kv_heads ({})",
                self.n_heads, self.n_kv_heads
            )));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(bad(format!(
                "head_dim is {} and must be even, because positions turn pairs",
                self.head_dim
            )));
        }
        for (name, value) in [("rms_norm_eps", self.rms_norm_eps), ("rope_theta", self.rope_theta)]
        {
            if !(value.is_finite() && value > 0.0) {
                return Err(bad(format!("{name} is {value} and must be a positive number")));
            }
        }
        Ok(())
    }

    /// Reads what transformers writes, and the older form of published checkpoints.
    pub(crate) fn from_json(json: &Map<String, Value>) -> Result<Self, ModelError> {
        refuse_what_is_not_computed(json)?;
        let config = Self {
            architecture: Architecture::Qwen3,
            vocab_size: size(json, "vocab_size")?,
            hidden_size: size(json, "hidden_size")?,
            intermediate_size: size(json, "intermediate_size")?,
            n_layers: size(json, "num_hidden_layers")?,
            n_heads: size(json, "num_attention_heads")?,
            n_kv_heads: size(json, "num_key_value_heads")?,
            head_dim: optional(json, "head_dim", 128, Value::as_u64)? as usize,
            max_positions: size(json, "max_position_embeddings")?,
            rms_norm_eps: optional(json, "rms_norm_eps", 1e-6, Value::as_f64)?,
            rope_theta: rope_theta(json)?,
            tie_word_embeddings: optional(json, "tie_word_embeddings", false, Value::as_bool)?,
        };
        config.validate()?;
        Ok(config)
    }

    /// What transformers reads. Keys of `original` that say nothing about the sizes are kept, such as the end-of-text token.
    pub(crate) fn to_json(self, original: &Map<String, Value>) -> Map<String, Value> {
        let ours = json!({
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "attention_bias": false,
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
            // The first is for transformers 5, the second for its predecessors and for inference servers.
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "dtype": "float32",
            "torch_dtype": "float32",
        });
        let mut merged = original.clone();
        if let Value::Object(ours) = ours {
            merged.extend(ours);
        }
        merged
    }
}

fn bad(reason: String) -> ModelError {
    ModelError::BadConfig(reason)
}

/// A key, what is supported, and whether a value is that. Keys that are absent or null mean the default.
type Check = (&'static str, &'static str, fn(&Value) -> bool);

fn refuse_what_is_not_computed(json: &Map<String, Value>) -> Result<(), ModelError> {
    let refuse = |reason: String| Err(ModelError::Unsupported(reason));
    match json.get("model_type").and_then(Value::as_str) {
        Some("qwen3") => {}
        Some(other) => {
            return refuse(format!("model_type is \"{other}\"; \"qwen3\" is supported"));
        }
        None => {
            return refuse("config.json names no model_type; \"qwen3\" is supported".to_owned());
        }
    }
    let checks: [Check; 6] = [
        ("hidden_act", "\"silu\"", |value| value == "silu"),
        ("attention_bias", "false", |value| value == false),
        ("use_sliding_window", "false", |value| value == false),
        ("layer_types", "full attention in every layer", |value| {
            value.as_array().is_some_and(|types| types.iter().all(|kind| kind == "full_attention"))
        }),
        ("rope_scaling", "null or the default type", default_rope),
        ("rope_parameters", "the default rope_type", default_rope),
    ];
    for (key, supported, holds) in checks {
        let value = json.get(key).filter(|value| !value.is_null());
        if let Some(value) = value.filter(|value| !holds(value)) {
            return refuse(format!("{key} is {value}; supported: {supported}"));
        }
    }
    match json.get("quantization_config").filter(|value| !value.is_null()) {
        Some(_) => {
            refuse("the weights are quantised; float32, bfloat16 and float16 are supported".into())
        }
        None => Ok(()),
    }
}

fn default_rope(parameters: &Value) -> bool {
    let is_default = |key| parameters.get(key).is_none_or(|kind| kind == "default");
    let whole =
        parameters.get("partial_rotary_factor").is_none_or(|factor| factor.as_f64() == Some(1.0));
    is_default("rope_type") && is_default("type") && whole
}

fn rope_theta(json: &Map<String, Value>) -> Result<f64, ModelError> {
    match json.get("rope_parameters").and_then(Value::as_object) {
        Some(parameters) if parameters.contains_key("rope_theta") => {
            optional(parameters, "rope_theta", 0.0, Value::as_f64)
        }
        _ => optional(json, "rope_theta", 10_000.0, Value::as_f64),
    }
}

fn size(json: &Map<String, Value>, key: &str) -> Result<usize, ModelError> {
    let value = json.get(key).ok_or_else(|| bad(format!("config.json has no {key}")))?;
    let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
    size.ok_or_else(|| bad(format!("{key} is {value} and must be a whole number")))
}

fn optional<T>(
    json: &Map<String, Value>,
    key: &str,
    default: T,
    read: fn(&Value) -> Option<T>,
) -> Result<T, ModelError> {
    match json.get(key).filter(|value| !value.is_null()) {
        None => Ok(default),
        Some(value) => read(value).ok_or_else(|| bad(format!("{key} is {value}"))),
    }
}
