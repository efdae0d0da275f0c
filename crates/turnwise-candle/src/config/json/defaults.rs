//! Values of keys that a `config.json` leaves out.

use serde_json::{Map, Value, json};

use super::{object, rope};

/// The key of the width of a head, for files in which neither a key nor a tensor has it.
pub(super) const DEFAULT_HEAD_DIM: &str = "default_head_dim";

const POSITIONS: &str = "max_position_embeddings";

/// Adds the values of transformers for missing keys. A key with null stays.
pub(super) fn added(json: &Map<String, Value>, kind: &str) -> Map<String, Value> {
    let defaults = object(match kind {
        "llama" | "granite" => json!({POSITIONS: 2048}),
        "olmo2" => json!({POSITIONS: 2048, "rms_norm_eps": 1e-5}),
        "mistral" => json!({POSITIONS: 131_072, "sliding_window": 4096}),
        "mixtral" => json!({
            POSITIONS: 131_072,
            "rms_norm_eps": 1e-5,
            rope::DEFAULT_THETA: 1e6,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        }),
        "gemma3_text" => json!({
            POSITIONS: 131_072,
            "vocab_size": 262_208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            DEFAULT_HEAD_DIM: 256,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
            "tie_word_embeddings": true,
            rope::DEFAULT_THETA: 1e6,
        }),
        "smollm3" => json!({
            POSITIONS: 32_768,
            "tie_word_embeddings": true,
            rope::DEFAULT_THETA: 2e6,
        }),
        "phi3" => json!({
            POSITIONS: 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
        }),
        "qwen2_moe" => json!({
            POSITIONS: 32_768,
            "sliding_window": 4096,
            "num_experts_per_tok": 4,
            "shared_expert_intermediate_size": 5632,
        }),
        _ => json!({POSITIONS: 32_768, "sliding_window": 4096}),
    });
    let mut all = json.clone();
    if all.get(POSITIONS).is_some_and(Value::is_null) {
        all.remove(POSITIONS);
    }
    for (key, value) in defaults {
        all.entry(key).or_insert(value);
    }
    all
}
