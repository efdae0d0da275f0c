//! `config.json`, in the forms of transformers 4 and 5.

mod defaults;
mod family;
mod refusals;
mod rope;
mod text;
mod window;

pub(crate) use text::{has_images, text_part};

use serde_json::{Map, Value, json};

use crate::architecture::{Activation, QueryKeyNorm};
use crate::error::brief;
use crate::{Architecture, DecoderConfig, ModelError};

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
        let kind = json.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let mut json = defaults::added(json, kind);
        let mut local_rope_theta = 0.0;
        if kind == "gemma3_text" {
            (json, local_rope_theta) = rope::by_layer(&json)?;
        }
        let json = &json;
        let n_heads = size(json, "num_attention_heads")?;
        let hidden_size = size(json, "hidden_size")?;
        let n_layers = size(json, "num_hidden_layers")?;
        let max_positions = size(json, "max_position_embeddings")?;
        let rope = rope::read(json, max_positions)?;
        let architecture = family::read(json, kind, n_layers, local_rope_theta)?;
        let unrotated = match &architecture {
            Architecture::SmolLm3 { unrotated_layers, .. } => &unrotated_layers[..],
            _ => &[],
        };
        let has_heads = architecture.properties().query_key_norm == QueryKeyNorm::Heads;
        let head_width = head_width.filter(|_| has_heads);
        let head_dim = optional_size(json, "head_dim")?.or(head_width);
        let head_dim = head_dim.or(optional_size(json, defaults::DEFAULT_HEAD_DIM)?);
        let config = Self {
            sliding_window: window::read(json, kind, n_layers, unrotated)?,
            architecture,
            vocab_size: size(json, "vocab_size")?,
            hidden_size,
            intermediate_size: size(json, "intermediate_size")?,
            n_layers,
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
        let properties = self.architecture.properties();
        let mut json = object(json!({
            "architectures": [properties.class],
            "model_type": properties.model_type,
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
        let (key, name) = match properties.activation {
            Activation::Silu => ("hidden_act", "silu"),
            Activation::GeluTanh => ("hidden_activation", "gelu_pytorch_tanh"),
        };
        json.insert(key.to_owned(), name.into());
        json.extend(rope::write(self.rope_theta, &self.rope_scaling));
        json.extend(window::write(self));
        json.extend(family::write(self, &json));
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
