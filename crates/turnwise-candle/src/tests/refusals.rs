//! Refused checkpoints and configurations, and their error messages.

use std::fs;
use std::path::Path;

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use super::checkpoint::{copy, edit_json, tensors, write};
use crate::Decoder;

/// Returns the messages of the error and its sources.
pub(super) fn failure(directory: &Path) -> String {
    let error = Decoder::from_directory(directory).unwrap_err();
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    format!("{error} {source}")
}

fn failure_with(edit: impl FnOnce(&mut Value)) -> String {
    let directory = copy("qwen3_tied");
    edit_json(&directory.path().join("config.json"), edit);
    failure(directory.path())
}

#[test]
fn every_cut_of_a_weights_file_is_an_error() {
    let directory = copy("qwen3_tied");
    let path = directory.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [0, 1, 7, 8, 9, 100, 2000, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let failure = failure(directory.path());
        assert!(failure.contains("model.safetensors") && failure.contains(&length.to_string()));
    }
}

#[test]
fn what_is_missing_is_named() {
    let nowhere = tempfile::tempdir().unwrap().path().join("nowhere");
    assert!(failure(&nowhere).contains("nowhere"));
    let directory = copy("qwen3_tied");
    fs::remove_file(directory.path().join("model.safetensors")).unwrap();
    assert!(failure(directory.path()).contains("model.safetensors"));
    fs::remove_file(directory.path().join("config.json")).unwrap();
    assert!(failure(directory.path()).contains("config.json"));
}

#[test]
fn every_tensor_that_does_not_fit_is_named_with_its_shapes() {
    let failure = failure_with(|json| json["tie_word_embeddings"] = false.into());
    assert!(failure.contains("lm_head.weight [384, 48] is missing"), "{failure}");
    let failure = failure_with(|json| json["vocab_size"] = 385.into());
    assert!(
        failure.contains("model.embed_tokens.weight is [384, 48] and must be [385, 48]"),
        "{failure}"
    );
    let failure = failure_with(|json| json["intermediate_size"] = 97.into());
    for (name, is, must) in [
        ("gate_proj", "[96, 48]", "[97, 48]"),
        ("up_proj", "[96, 48]", "[97, 48]"),
        ("down_proj", "[48, 96]", "[48, 97]"),
    ] {
        let problem = format!(
            "model.layers.0.mlp.{name}.weight is {is} and must be {must} (and 1 more tensors like it)"
        );
        assert!(failure.contains(&problem), "{failure}");
    }
    let failure = failure_with(|json| json["num_hidden_layers"] = 1.into());
    assert_eq!(failure.matches("model.layers.1.").count(), 11, "{failure}");
    assert!(failure.contains("model.layers.1.input_layernorm.weight [48] is not a part of it"));
    let failure = failure_with(|json| json["num_hidden_layers"] = 3.into());
    assert_eq!(failure.matches("model.layers.2.").count(), 11, "{failure}");
}

#[test]
fn a_model_of_another_family_names_what_is_missing_and_what_is_too_much() {
    // Qwen3 without QK-norm and with biases is Qwen2.
    let directory = copy("qwen2");
    edit_json(&directory.path().join("config.json"), |json| json["model_type"] = "qwen3".into());
    let failure = failure(directory.path());
    for name in ["q_proj.bias [56]", "k_proj.bias [28]", "v_proj.bias [28]"] {
        let problem = format!("model.layers.0.self_attn.{name} is not a part of it (and 1 more");
        assert!(failure.contains(&problem), "{failure}");
    }
    assert!(failure.contains("model.layers.0.self_attn.q_norm.weight [14] is missing"));

    let directory = copy("qwen3_moe_norm");
    edit_json(&directory.path().join("config.json"), |json| json["num_local_experts"] = 5.into());
    let failure = super::refusals::failure(directory.path());
    assert!(failure.contains("model.layers.1.mlp.gate.weight is [4, 48] and must be [5, 48]"));
    assert!(failure.contains("model.layers.1.mlp.experts.4.down_proj.weight [48, 32] is missing"));
}

#[test]
fn tensors_of_other_types_are_refused() {
    let directory = copy("llama");
    let mut all = tensors(directory.path());
    let (shape, dtype, bytes) = all.get_mut("model.norm.weight").unwrap();
    (*shape, *dtype) = (vec![64], Dtype::I32);
    assert_eq!(bytes.len(), 256);
    write(directory.path(), &all);
    assert!(failure(directory.path()).contains("model.norm.weight is I32; F32, BF16 and F16"));
}

#[test]
fn what_is_not_computed_is_refused() {
    let unfinished = json!({"rope_type": "llama3", "factor": 2.0});
    let cases: Vec<(&str, Value, &str)> = vec![
        ("model_type", json!("gpt2"), "\"gpt2\"; supported: \"llama\", \"qwen2\", \"qwen3\""),
        ("model_type", Value::Null, "names no model_type"),
        ("architectures", json!(["Qwen3ForSequenceClassification"]), "SequenceClassification"),
        ("hidden_act", json!("gelu"), "hidden_act is \"gelu\""),
        (
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
            "there is no sliding_window",
        ),
        ("layer_types", json!(["full_attention", "chunked_attention"]), "chunked_attention"),
        ("attn_logit_softcapping", json!(50.0), "attn_logit_softcapping is 50.0"),
        ("use_bidirectional_attention", json!(true), "use_bidirectional_attention is true"),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        ("rope_parameters", json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor 0.5"),
        ("rope_scaling", json!({"type": "ntk", "factor": 4.0}), "of the type \"ntk\""),
        ("rope_scaling", json!({"rope_type": "longrope"}), "need a list of numbers short_factor"),
        ("rope_scaling", json!("yarn"), "rope_scaling is \"yarn\""),
        ("rope_parameters", json!({"full_attention": {}}), "different for full_attention"),
        ("rope_parameters", unfinished, "\"llama3\" need a number low_freq_factor"),
        ("rope_scaling", json!({"type": "yarn"}), "\"yarn\" need a number factor"),
        ("rope_scaling", json!({"type": "linear", "factor": 0.0}), "factor is 0"),
        ("quantization_config", json!({"bits": 4}), "quantised"),
        ("num_key_value_heads", json!(3), "multiple"),
        ("hidden_size", json!(0), "hidden_size"),
        ("hidden_size", json!("48"), "hidden_size"),
        ("head_dim", json!(15), "even"),
        ("rms_norm_eps", json!(-1.0), "rms_norm_eps"),
        ("attention_bias", json!("no"), "attention_bias"),
    ];
    for (key, value, expected) in cases {
        let failure = failure_with(|json| {
            if key == "rope_scaling" {
                json["rope_parameters"] = Value::Null;
            }
            json[key] = value;
        });
        assert!(failure.contains(expected), "{key}: {failure}");
    }
    assert!(failure_with(|json| *json = json!([1])).contains("config.json"));
    assert!(failure_with(|json| json["vocab_size"] = Value::Null).contains("vocab_size"));
    // What another family has is no problem of its own.
    let failure = failure_with(|json| {
        json["model_type"] = "gemma2".into();
        json["layer_types"] = json!(["sliding_attention", "full_attention"]);
        json["hidden_act"] = "gelu_pytorch_tanh".into();
    });
    assert!(failure.contains("model_type is \"gemma2\""), "{failure}");
    assert!(!failure.contains("supported of"), "{failure}");
    // All problems are reported together.
    let failure = failure_with(|json| {
        json["hidden_act"] = "gelu".into();
        json["is_causal"] = false.into();
    });
    assert!(failure.contains("hidden_act") && failure.contains("is_causal"));
}

#[test]
fn experts_that_cannot_be_are_refused() {
    let cases = [
        ("num_experts_per_tok", json!(5), "5 experts for each token are more than 4"),
        ("num_local_experts", json!(0), "the number of experts is 0"),
        ("num_local_experts", Value::Null, "no num_experts and no num_local_experts"),
        ("decoder_sparse_step", json!(0), "sparse_step is 0"),
        ("mlp_only_layers", json!([-1]), "mlp_only_layers"),
        ("moe_intermediate_size", Value::Null, "moe_intermediate_size"),
    ];
    for (key, value, expected) in cases {
        let directory = copy("qwen3_moe_norm");
        edit_json(&directory.path().join("config.json"), |json| json[key] = value);
        let failure = failure(directory.path());
        assert!(failure.contains(expected), "{key}: {failure}");
    }
}

#[test]
fn an_index_names_files_of_its_directory_only() {
    for name in ["../elsewhere.safetensors", "/etc/passwd", "a/b", "..", ""] {
        let directory = copy("qwen3_untied");
        edit_json(&directory.path().join("model.safetensors.index.json"), |json| {
            json["weight_map"]["model.norm.weight"] = name.into();
        });
        assert!(failure(directory.path()).contains("is not a name in the directory"), "{name}");
    }
}

#[test]
fn every_shard_that_is_missing_is_named_with_what_it_should_hold() {
    let directory = copy("qwen3_untied");
    for shard in [2, 3] {
        let name = format!("model-0000{shard}-of-00004.safetensors");
        fs::remove_file(directory.path().join(name)).unwrap();
    }
    let failure = failure(directory.path());
    for shard in [2, 3] {
        let expected = format!("the file model-0000{shard}-of-00004.safetensors is missing, which");
        assert!(failure.contains(&expected), "{failure}");
    }
}

#[test]
fn an_index_that_disagrees_with_its_shards_is_refused() {
    let directory = copy("qwen3_untied");
    let path = directory.path().join("model.safetensors.index.json");
    let mut other = String::new();
    edit_json(&path, |json| {
        let own = json["weight_map"]["model.norm.weight"].as_str().unwrap().to_owned();
        other = if own.contains("00001") {
            own.replace("00001", "00002")
        } else {
            "model-00001-of-00004.safetensors".to_owned()
        };
        json["weight_map"]["model.norm.weight"] = other.clone().into();
    });
    let expected = format!("model.norm.weight is not in {other}, although the index says so");
    assert!(failure(directory.path()).contains(&expected));

    let directory = copy("qwen3_untied");
    let path = directory.path();
    let twice = "model-00001-of-00004.safetensors";
    fs::copy(path.join(twice), path.join("again.safetensors")).unwrap();
    edit_json(&path.join("model.safetensors.index.json"), |json| {
        let map = json["weight_map"].as_object_mut().unwrap();
        map.insert("another".to_owned(), "again.safetensors".into());
    });
    let failure = failure(path);
    assert!(failure.contains("is in more than one file"), "{failure}");
    assert!(failure.contains("another is not in again.safetensors"), "{failure}");
}
