//! The GGUF names of Hugging Face's tensors, as in `llama.cpp`'s `tensor_mapping.py`.

/// The place of a checkpoint's tensor in a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufPlace {
    /// The name in GGUF.
    pub name: String,
    /// The index in a tensor that stacks those of all experts.
    pub expert: Option<usize>,
}

/// Returns the place of a tensor of a model of this `model_type`; `None` if the format does not have it.
///
/// ```
/// use turnwise_candle::gguf_place;
///
/// let place = gguf_place("llama", "model.layers.3.mlp.up_proj.weight").expect("GGUF has it");
/// assert_eq!(place.name, "blk.3.ffn_up.weight");
/// ```
#[must_use]
pub fn gguf_place(model_type: &str, name: &str) -> Option<GgufPlace> {
    let whole = |name: &str| Some(GgufPlace { name: name.to_owned(), expert: None });
    let Some(inside) = name.strip_prefix("model.layers.") else {
        return match name {
            "model.embed_tokens.weight" => whole("token_embd.weight"),
            "model.norm.weight" => whole("output_norm.weight"),
            "lm_head.weight" => whole("output.weight"),
            _ => None,
        };
    };
    let (layer, inside) = inside.split_once('.')?;
    let (module, kind) = inside.rsplit_once('.')?;
    let experts = ["mlp.experts.", "block_sparse_moe.experts."];
    let (module, expert) = match experts.iter().find_map(|stack| module.strip_prefix(stack)) {
        None => (in_layer(model_type, module)?, None),
        Some(expert) => {
            let (expert, module) = expert.split_once('.')?;
            (in_expert(module)?, Some(expert.parse().ok()?))
        }
    };
    Some(GgufPlace { name: format!("blk.{layer}.{module}.{kind}"), expert })
}

fn in_layer(model_type: &str, module: &str) -> Option<&'static str> {
    // Families with norms after a half layer use the name of another norm for the first of them.
    let has_norms_after = matches!(model_type, "gemma3_text" | "olmo2");
    Some(match module {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.qkv_proj" => "attn_qkv",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "post_attention_layernorm" if has_norms_after => "post_attention_norm",
        "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" | "mlp.gate_up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "mlp.gate" | "block_sparse_moe.gate" => "ffn_gate_inp",
        "mlp.shared_expert_gate" => "ffn_gate_inp_shexp",
        "mlp.shared_expert.gate_proj" => "ffn_gate_shexp",
        "mlp.shared_expert.up_proj" => "ffn_up_shexp",
        "mlp.shared_expert.down_proj" => "ffn_down_shexp",
        _ => return None,
    })
}

fn in_expert(module: &str) -> Option<&'static str> {
    Some(match module {
        "gate_proj" | "w1" => "ffn_gate_exps",
        "up_proj" | "w3" => "ffn_up_exps",
        "down_proj" | "w2" => "ffn_down_exps",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_have_the_names_of_llama_cpp() {
        let named = [
            ("llama", "model.embed_tokens.weight", "token_embd.weight"),
            ("llama", "model.norm.weight", "output_norm.weight"),
            ("llama", "lm_head.weight", "output.weight"),
            ("llama", "model.layers.11.input_layernorm.weight", "blk.11.attn_norm.weight"),
            ("llama", "model.layers.1.post_attention_layernorm.weight", "blk.1.ffn_norm.weight"),
            ("qwen2", "model.layers.0.self_attn.q_proj.bias", "blk.0.attn_q.bias"),
            ("qwen3_moe", "model.layers.0.mlp.gate.weight", "blk.0.ffn_gate_inp.weight"),
            (
                "gemma3_text",
                "model.layers.2.post_attention_layernorm.weight",
                "blk.2.post_attention_norm.weight",
            ),
            (
                "gemma3_text",
                "model.layers.2.pre_feedforward_layernorm.weight",
                "blk.2.ffn_norm.weight",
            ),
        ];
        for (family, from, to) in named {
            let place = GgufPlace { name: to.to_owned(), expert: None };
            assert_eq!(gguf_place(family, from), Some(place));
        }
        let down = "model.layers.3.mlp.experts.7.down_proj.weight";
        let stacked = GgufPlace { name: "blk.3.ffn_down_exps.weight".into(), expert: Some(7) };
        assert_eq!(gguf_place("qwen3_moe", down), Some(stacked.clone()));
        let down = "model.layers.3.block_sparse_moe.experts.7.w2.weight";
        assert_eq!(gguf_place("mixtral", down), Some(stacked));
        let wrong = "model.layers.3.mlp.experts.seven.down_proj.weight";
        assert_eq!(gguf_place("qwen3_moe", wrong), None);
        assert_eq!(gguf_place("llama", "model.layers.0.self_attn.sinks.weight"), None);
    }
}
