//! `config.json` from the metadata of a GGUF file, by the keys of the GGUF specification and `llama.cpp`'s
//! `convert_hf_to_gguf.py`.

use serde_json::{Map, Value, json};

use super::GgufFile;
use crate::error::brief;
use crate::{Architecture, DecoderConfig, ModelError};

/// The base of local rotary frequencies in Gemma 3, which files do not have.
const GEMMA3_LOCAL_THETA: f64 = 10_000.0;
/// In Gemma 3, every sixth layer attends to all tokens.
const GEMMA3_PATTERN: usize = 6;
/// The layers of the one Gemma 3 whose attention is scaled by `hidden_size / n_heads` instead of the head's width.
const GEMMA3_27B_LAYERS: u64 = 62;

impl GgufFile {
    /// Returns the model's configuration as the `config.json` of transformers.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] for a family that is not supported, [`ModelError::Malformed`] for a file that lacks a
    /// key.
    pub fn config(&self) -> Result<Map<String, Value>, ModelError> {
        let Some(Value::String(architecture)) = self.get("general.architecture") else {
            return Err(self.malformed("it does not name the model's architecture"));
        };
        let keys = Keys { file: self, architecture: &architecture };
        let mut config = keys.sizes()?;
        config.extend(keys.special_tokens());
        config.extend(keys.rope()?);
        config.insert("model_type".to_owned(), keys.model_type().into());
        config.extend(keys.own()?);
        if config.contains_key("hidden_activation") {
            config.remove("hidden_act");
        }
        // The class stands in the file too, for other programs.
        let class = DecoderConfig::from_json(&config, None)?.architecture.properties().class;
        config.insert("architectures".to_owned(), json!([class]));
        Ok(config)
    }

    /// Returns the shape of a tensor.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.header.tensor_infos.get(name).map(|info| info.shape.dims())
    }
}

/// The keys of an architecture.
pub(super) struct Keys<'a> {
    pub(super) file: &'a GgufFile,
    pub(super) architecture: &'a str,
}

impl Keys<'_> {
    pub(super) fn get(&self, key: &str) -> Option<Value> {
        self.file.get(&format!("{}.{key}", self.architecture))
    }

    fn needed(&self, key: &str) -> Result<Value, ModelError> {
        self.get(key).ok_or_else(|| {
            self.file.malformed(format!("it has no {}.{}", brief(self.architecture), key))
        })
    }

    pub(super) fn count(&self, key: &str) -> Option<u64> {
        self.get(key)?.as_u64()
    }

    pub(super) fn has(&self, tensor: &str) -> bool {
        self.file.shape(tensor).is_some()
    }

    /// Returns the family's name in transformers. Mistral and Mixtral are `llama` in GGUF.
    fn model_type(&self) -> &str {
        match self.architecture {
            "llama" if self.count("expert_count").is_some_and(|count| count > 0) => "mixtral",
            "llama" if self.count("attention.sliding_window").is_some() => "mistral",
            "qwen2moe" => "qwen2_moe",
            "qwen3moe" => "qwen3_moe",
            "gemma3" => "gemma3_text",
            other => other,
        }
    }

    fn sizes(&self) -> Result<Map<String, Value>, ModelError> {
        let n_heads = self.needed("attention.head_count")?;
        let embedding = self.file.shape("token_embd.weight");
        let Some([vocab_size, _]) = embedding else {
            return Err(self.file.malformed("it has no token_embd.weight"));
        };
        let head_dim = self.get("attention.key_length").or_else(|| match self.architecture {
            "llama" | "granite" | "smollm3" => self.get("rope.dimension_count"),
            _ => None,
        });
        let mut sizes = Map::new();
        sizes.insert("vocab_size".to_owned(), (*vocab_size).into());
        sizes.insert("hidden_size".to_owned(), self.needed("embedding_length")?);
        sizes.insert("num_hidden_layers".to_owned(), self.needed("block_count")?);
        let kv_heads = self.get("attention.head_count_kv").unwrap_or_else(|| n_heads.clone());
        sizes.insert("num_attention_heads".to_owned(), n_heads);
        sizes.insert("num_key_value_heads".to_owned(), kv_heads);
        sizes.extend(head_dim.map(|width| ("head_dim".to_owned(), width)));
        // A model of experts alone has no dense width.
        let inner =
            self.get("feed_forward_length").or_else(|| self.get("expert_feed_forward_length"));
        sizes.insert(
            "intermediate_size".to_owned(),
            inner.map_or_else(|| self.needed("feed_forward_length"), Ok)?,
        );
        sizes.insert("max_position_embeddings".to_owned(), self.needed("context_length")?);
        sizes.insert("rms_norm_eps".to_owned(), self.needed("attention.layer_norm_rms_epsilon")?);
        sizes.insert("tie_word_embeddings".to_owned(), (!self.has("output.weight")).into());
        sizes.insert("hidden_act".to_owned(), "silu".into());
        sizes.insert("dtype".to_owned(), "float32".into());
        Ok(sizes)
    }

    fn special_tokens(&self) -> impl Iterator<Item = (String, Value)> {
        let named = [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")];
        named.into_iter().filter_map(|(key, name)| {
            let id = self.file.get(&format!("tokenizer.ggml.{name}_token_id"))?;
            Some((key.to_owned(), id))
        })
    }

    /// Returns what a family has of its own.
    fn own(&self) -> Result<Map<String, Value>, ModelError> {
        let own = match self.architecture {
            "llama" | "granite" | "qwen3" | "qwen3moe" | "smollm3" => {
                let mut own = json!({
                    "attention_bias": self.has("blk.0.attn_q.bias"),
                    "mlp_bias": self.has("blk.0.ffn_gate.bias"),
                });
                if let Some(window) = self.get("attention.sliding_window") {
                    own["sliding_window"] = window;
                }
                merged(own, self.experts()?)
            }
            "qwen2moe" => self.experts()?,
            "phi3" => self.phi3()?,
            "gemma3" => self.gemma3()?,
            _ => Value::Null,
        };
        let mut own = match own {
            Value::Object(own) => own,
            _ => Map::new(),
        };
        if self.architecture == "granite" {
            own.extend(self.granite());
        }
        Ok(own)
    }

    fn experts(&self) -> Result<Value, ModelError> {
        let Some(n_experts) = self.count("expert_count").filter(|count| *count > 0) else {
            return Ok(Value::Null);
        };
        let n_chosen = self.needed("expert_used_count")?;
        let shared = self.get("expert_shared_feed_forward_length");
        Ok(match self.architecture {
            "llama" => json!({"num_local_experts": n_experts, "num_experts_per_tok": n_chosen}),
            // In llama.cpp, Qwen3 divides the weights of the chosen experts by their sum, and Qwen2 does not.
            family => json!({
                "num_experts": n_experts,
                "num_experts_per_tok": n_chosen,
                "moe_intermediate_size": self.needed("expert_feed_forward_length")?,
                "shared_expert_intermediate_size": shared,
                "norm_topk_prob": family == "qwen3moe",
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
            }),
        })
    }

    /// Returns the partial rotation and the `LongRoPE` of Phi-3, whose factors are tensors.
    fn phi3(&self) -> Result<Value, ModelError> {
        let heads = self.count("attention.head_count").unwrap_or(1).max(1);
        let width = self.count("embedding_length").unwrap_or(0) as f64 / heads as f64;
        let rotated = self.count("rope.dimension_count").map_or(width, |count| count as f64);
        let mut own = json!({"partial_rotary_factor": rotated / width});
        if self.has("rope_factors_long.weight") {
            own["rope_scaling"] = json!({
                "rope_type": "longrope",
                "long_factor": self.file.numbers("rope_factors_long.weight")?,
                "short_factor": self.file.numbers("rope_factors_short.weight")?,
            });
            if let Some(original) = self.count("rope.scaling.original_context_length") {
                own["original_max_position_embeddings"] = original.into();
            }
            if let Some(factor) = self.get("rope.scaling.attn_factor") {
                own["rope_scaling"]["attention_factor"] = factor;
            }
        }
        Ok(own)
    }

    fn gemma3(&self) -> Result<Value, ModelError> {
        let (n_layers, width) = (self.needed("block_count")?, self.needed("attention.key_length")?);
        let (hidden, heads) = (self.count("embedding_length"), self.count("attention.head_count"));
        let scale = match (hidden, heads) {
            (Some(hidden), Some(heads)) if n_layers == GEMMA3_27B_LAYERS && heads > 0 => {
                json!(hidden / heads)
            }
            _ => width,
        };
        let layers = 0..n_layers.as_u64().unwrap_or(0);
        let kinds = layers.map(|layer| {
            let is_global = (layer + 1).is_multiple_of(GEMMA3_PATTERN as u64);
            if is_global { "full_attention" } else { "sliding_attention" }
        });
        Ok(json!({
            "attention_bias": false,
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": scale,
            "rope_local_base_freq": GEMMA3_LOCAL_THETA,
            "sliding_window": self.needed("attention.sliding_window")?,
            "layer_types": kinds.collect::<Vec<_>>(),
        }))
    }

    fn granite(&self) -> impl Iterator<Item = (String, Value)> {
        let scales = [
            ("embedding_multiplier", "embedding_scale"),
            ("residual_multiplier", "residual_scale"),
            ("attention_multiplier", "attention.scale"),
            ("logits_scaling", "logit_scale"),
        ];
        scales.into_iter().filter_map(|(key, own)| Some((key.to_owned(), self.get(own)?)))
    }
}

fn merged(mut one: Value, other: Value) -> Value {
    if let (Some(all), Value::Object(other)) = (one.as_object_mut(), other) {
        all.extend(other);
    }
    one
}

/// Returns whether a family's queries and keys are stored with the two elements of a rotary pair side by side.
pub(super) fn interleaves(architecture: &Architecture) -> bool {
    matches!(architecture.model_type(), "llama" | "mistral" | "mixtral" | "granite" | "smollm3")
}
