//! The GGUF names of Hugging Face's tensors, as in `llama.cpp`'s `tensor_mapping.py`.

/// The destination of a checkpoint's tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The name in GGUF.
    pub(crate) name: String,
    /// The index in a tensor that stacks those of all experts.
    pub(crate) expert: Option<usize>,
}

/// Returns the place of a tensor; `None` if the format does not have it.
pub(crate) fn place(name: &str) -> Option<Place> {
    let whole = |name: &str| Some(Place { name: name.to_owned(), expert: None });
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
    let (module, expert) = match module.strip_prefix("mlp.experts.") {
        None => (in_layer(module)?, None),
        Some(expert) => {
            let (expert, module) = expert.split_once('.')?;
            (in_expert(module)?, Some(expert.parse().ok()?))
        }
    };
    Some(Place { name: format!("blk.{layer}.{module}.{kind}"), expert })
}

fn in_layer(module: &str) -> Option<&'static str> {
    Some(match module {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "post_attention_layernorm" => "ffn_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "mlp.gate" => "ffn_gate_inp",
        _ => return None,
    })
}

fn in_expert(module: &str) -> Option<&'static str> {
    Some(match module {
        "gate_proj" => "ffn_gate_exps",
        "up_proj" => "ffn_up_exps",
        "down_proj" => "ffn_down_exps",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_have_the_names_of_llama_cpp() {
        let named = [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("model.norm.weight", "output_norm.weight"),
            ("lm_head.weight", "output.weight"),
            ("model.layers.11.input_layernorm.weight", "blk.11.attn_norm.weight"),
            ("model.layers.0.self_attn.q_proj.bias", "blk.0.attn_q.bias"),
            ("model.layers.0.mlp.gate.weight", "blk.0.ffn_gate_inp.weight"),
        ];
        for (from, to) in named {
            assert_eq!(place(from), Some(Place { name: to.to_owned(), expert: None }));
        }
        let stacked = place("model.layers.3.mlp.experts.7.down_proj.weight").unwrap();
        assert_eq!(stacked, Place { name: "blk.3.ffn_down_exps.weight".into(), expert: Some(7) });
        assert_eq!(place("model.layers.3.mlp.experts.seven.down_proj.weight"), None);
        assert_eq!(place("model.layers.0.self_attn.sinks.weight"), None);
    }
}
