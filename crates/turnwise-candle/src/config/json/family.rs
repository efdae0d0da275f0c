//! The options of each family in `config.json`.

use serde_json::{Map, Value, json};

use super::{bad, object, optional, optional_size, present, rope, size, window};
use crate::error::brief;
use crate::{Architecture, DecoderConfig, Experts, ModelError, Multipliers, RopeScaling};

/// Reads the family and its options.
pub(super) fn read(
    json: &Map<String, Value>,
    kind: &str,
    n_layers: usize,
    local_rope_theta: f64,
) -> Result<Architecture, ModelError> {
    let attention_bias = optional(json, "attention_bias", false, Value::as_bool)?;
    let mlp_bias = optional(json, "mlp_bias", false, Value::as_bool)?;
    let number = |key, default| optional(json, key, default, Value::as_f64);
    Ok(match kind {
        "llama" => Architecture::Llama { attention_bias, mlp_bias },
        "qwen2" => Architecture::Qwen2,
        "qwen3_moe" => Architecture::Qwen3Moe { attention_bias, experts: experts(json)? },
        "mistral" => Architecture::Mistral,
        "gemma3_text" => Architecture::Gemma3 {
            attention_bias,
            query_pre_attn_scalar: number("query_pre_attn_scalar", 256.0)?,
            local_rope_theta,
        },
        "smollm3" => {
            let unrotated_layers = window::unrotated(json, n_layers)?;
            Architecture::SmolLm3 { attention_bias, mlp_bias, unrotated_layers }
        }
        "granite" => Architecture::Granite {
            attention_bias,
            mlp_bias,
            multipliers: Multipliers {
                embedding: number("embedding_multiplier", 1.0)?,
                attention: number("attention_multiplier", 1.0)?,
                residual: number("residual_multiplier", 1.0)?,
                logits: number("logits_scaling", 1.0)?,
            },
        },
        "olmo2" => Architecture::Olmo2 { attention_bias },
        "phi3" => Architecture::Phi3 { partial_rotary_factor: rope::partial(json)? },
        "qwen2_moe" => Architecture::Qwen2Moe {
            qkv_bias: optional(json, "qkv_bias", true, Value::as_bool)?,
            experts: experts(json)?,
            shared_size: size(json, "shared_expert_intermediate_size")?,
        },
        "mixtral" => Architecture::Mixtral {
            experts: Experts {
                n_experts: n_experts(json)?,
                n_chosen: size(json, "num_experts_per_tok")?,
                intermediate_size: size(json, "intermediate_size")?,
                renormalize: true,
                sparse_step: 1,
                dense_layers: Vec::new(),
            },
        },
        "qwen3" => Architecture::Qwen3 { attention_bias },
        other => return Err(bad(format!("{other} is no model for text alone"))),
    })
}

/// Reads the number of experts of a layer. Published checkpoints have the first key, transformers 5 writes the second.
fn n_experts(json: &Map<String, Value>) -> Result<usize, ModelError> {
    let published = optional_size(json, "num_experts")?;
    match (published, optional_size(json, "num_local_experts")?) {
        (Some(one), Some(other)) if one != other => {
            Err(bad(format!("num_experts is {one} and num_local_experts is {other}")))
        }
        (one, other) => one
            .or(other)
            .ok_or_else(|| bad("config.json has no num_experts and no num_local_experts")),
    }
}

fn experts(json: &Map<String, Value>) -> Result<Experts, ModelError> {
    let dense_layers = match present(json, "mlp_only_layers") {
        None => Vec::new(),
        Some(layers) => serde_json::from_value(layers.clone()).map_err(|_| {
            bad(format!("mlp_only_layers is {} and must be a list of layers", brief(layers)))
        })?,
    };
    Ok(Experts {
        n_experts: n_experts(json)?,
        n_chosen: optional_size(json, "num_experts_per_tok")?.unwrap_or(8),
        intermediate_size: size(json, "moe_intermediate_size")?,
        renormalize: optional(json, "norm_topk_prob", false, Value::as_bool)?,
        sparse_step: optional_size(json, "decoder_sparse_step")?.unwrap_or(1),
        dense_layers,
    })
}

/// Returns the options of the family; `json` has what is common to all.
pub(super) fn write(config: &DecoderConfig, json: &Map<String, Value>) -> Map<String, Value> {
    let rope = || json.get("rope_parameters").cloned().unwrap_or_default();
    object(match &config.architecture {
        Architecture::Llama { attention_bias, mlp_bias } => {
            json!({"attention_bias": attention_bias, "mlp_bias": mlp_bias})
        }
        Architecture::Qwen2 | Architecture::Mistral => json!({}),
        Architecture::Qwen3 { attention_bias } | Architecture::Olmo2 { attention_bias } => {
            json!({"attention_bias": attention_bias})
        }
        Architecture::Qwen3Moe { attention_bias, experts } => {
            with_experts(json!({"attention_bias": attention_bias}), experts)
        }
        Architecture::Gemma3 { attention_bias, query_pre_attn_scalar, local_rope_theta } => {
            let local = json!({"rope_type": "default", "rope_theta": local_rope_theta});
            let [full, sliding] = rope::BY_LAYER;
            json!({
                "attention_bias": attention_bias,
                "query_pre_attn_scalar": whole(*query_pre_attn_scalar),
                "rope_local_base_freq": local_rope_theta,
                "rope_parameters": {full: rope(), sliding: local},
            })
        }
        Architecture::SmolLm3 { attention_bias, mlp_bias, unrotated_layers } => {
            let flags = (0..config.n_layers).map(|l| u8::from(!unrotated_layers.contains(&l)));
            json!({
                "attention_bias": attention_bias,
                "mlp_bias": mlp_bias,
                "no_rope_layers": flags.collect::<Vec<_>>(),
                // The default of transformers is beyond small vocabularies; so is that of Phi-3.
                "pad_token_id": null,
            })
        }
        Architecture::Granite { attention_bias, mlp_bias, multipliers } => json!({
            "attention_bias": attention_bias,
            "mlp_bias": mlp_bias,
            "embedding_multiplier": multipliers.embedding,
            "attention_multiplier": multipliers.attention,
            "residual_multiplier": multipliers.residual,
            "logits_scaling": multipliers.logits,
        }),
        Architecture::Phi3 { partial_rotary_factor } => {
            phi3(*partial_rotary_factor, rope(), &config.rope_scaling)
        }
        Architecture::Qwen2Moe { qkv_bias, experts, shared_size } => {
            let own = json!({"qkv_bias": qkv_bias, "shared_expert_intermediate_size": shared_size});
            with_experts(own, experts)
        }
        Architecture::Mixtral { experts } => json!({
            "num_local_experts": experts.n_experts,
            "num_experts_per_tok": experts.n_chosen,
            "intermediate_size": experts.intermediate_size,
        }),
    })
}

/// Returns the options of a Phi-3, which has the share of a head that rotates in two places.
fn phi3(partial_rotary_factor: f64, mut parameters: Value, scaling: &RopeScaling) -> Value {
    parameters["partial_rotary_factor"] = partial_rotary_factor.into();
    let mut own = json!({
        "partial_rotary_factor": partial_rotary_factor,
        "rope_parameters": parameters,
        "pad_token_id": null,
    });
    if let RopeScaling::LongRope { original_max_positions, .. } = scaling {
        own["original_max_position_embeddings"] = (*original_max_positions).into();
    }
    own
}

/// Adds the keys of experts.
fn with_experts(mut json: Value, experts: &Experts) -> Value {
    json["num_experts"] = experts.n_experts.into();
    json["num_experts_per_tok"] = experts.n_chosen.into();
    json["moe_intermediate_size"] = experts.intermediate_size.into();
    json["norm_topk_prob"] = experts.renormalize.into();
    json["decoder_sparse_step"] = experts.sparse_step.into();
    json["mlp_only_layers"] = experts.dense_layers.clone().into();
    json
}

/// Writes a whole number as an integer, which some keys must be in Python.
fn whole(number: f64) -> Value {
    if number.fract() == 0.0 { json!(number as i64) } else { json!(number) }
}
