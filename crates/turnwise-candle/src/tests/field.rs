//! Checkpoints and adapters from the field, compared with transformers and PEFT.

use std::fs;

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use super::checkpoint::{TensorMap, copy, edit_json, tensors, write};
use super::fixture::{case, distance, doubles, integers};
use super::refusals::failure;
use crate::{Decoder, DecoderConfig, Kernels, LoraSettings, ModelError, RopeScaling};

fn scored(name: &str, model: &Decoder) -> f64 {
    let expected: Value =
        serde_json::from_slice(&fs::read(case(name).join("expected.json")).unwrap()).unwrap();
    let input = fs::read_to_string(case(name).join("input.jsonl")).unwrap();
    let lines = input.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let ids: Vec<Vec<u32>> = lines.map(|line| integers(&line["ids"])).collect();
    let ours = model.score(&ids).unwrap();
    let theirs = expected["logprobs"].as_array().unwrap();
    assert_eq!(ours.len(), theirs.len());
    let each = ours.iter().zip(theirs).map(|(ours, theirs)| distance(ours, &doubles(theirs)));
    each.fold(0.0, |a, b| if b.is_nan() { b } else { f64::max(a, b) })
}

// Field 9: log-probabilities equal those of transformers.
#[test]
fn log_probabilities_are_those_of_transformers() {
    for name in ["tied_head_alone", "experts_in_one", "yarn_length_beside"] {
        for kernels in [Kernels::Fused, Kernels::Plain] {
            let model = Decoder::from_directory(&case(name).join("model")).unwrap();
            let worst = scored(name, &model.with_kernels(kernels));
            assert!(worst < 3e-6, "{name} {kernels:?}: {worst}");
        }
    }
}

#[test]
fn what_is_saved_of_them_is_the_same_model() {
    for name in ["tied_head_alone", "experts_in_one", "yarn_length_beside"] {
        let model = Decoder::from_directory(&case(name).join("model")).unwrap();
        let directory = tempfile::tempdir().unwrap();
        model.save(directory.path()).unwrap();
        let again = Decoder::from_directory(directory.path()).unwrap();
        assert_eq!(again.config(), model.config());
        assert_eq!(again.values().unwrap(), model.values().unwrap());
    }
}

#[test]
fn an_adapter_that_changes_its_base_is_refused() {
    let base = || Decoder::from_directory(&case("pissa").join("model")).unwrap();
    let said = base().with_adapter(&case("pissa").join("adapter")).unwrap_err().to_string();
    assert!(said.contains("init_lora_weights = \"pissa\"") && said.contains("base"), "{said}");
    for name in ["pissa_niter_4", "PISSA", "olora", "corda", "loftq", "lora_ga", "mica", "new"] {
        let said = adapter_with("init_lora_weights", json!(name)).unwrap_err().to_string();
        assert!(said.contains(name), "{said}");
    }
    for plain in [json!(true), json!(false), Value::Null, json!("gaussian"), json!("eva")] {
        adapter_with("init_lora_weights", plain).unwrap();
    }
}

/// Loads a model with an adapter in which one setting is changed.
fn adapter_with(key: &str, value: Value) -> Result<Decoder, ModelError> {
    let base = || Decoder::random(DecoderConfig::small(29), 4).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let adapted = base().with_lora(&LoraSettings { rank: 2, ..LoraSettings::default() }, 1)?;
    adapted.save_adapter(directory.path()).unwrap();
    edit_json(&directory.path().join("adapter_config.json"), |json| json[key] = value);
    base().with_adapter(directory.path())
}

#[test]
fn settings_of_an_adapter_are_computed_or_refused_by_name() {
    let refused = [
        ("use_dora", json!(true)),
        ("use_something_new", json!(true)),
        ("something_new_config", json!({"rank": 3})),
        ("rank_pattern", json!({"q_proj": 4})),
        ("alpha_pattern", json!({"q_proj": 4})),
        ("layers_to_transform", json!([0])),
        ("layers_to_transform", json!(0)),
        ("layer_replication", json!([[0, 1]])),
        ("modules_to_save", json!(["lm_head"])),
        ("bias", json!("all")),
        ("bias", json!("lora_only")),
        ("lora_bias", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("target_parameters", json!(["experts.down_proj"])),
        ("trainable_token_indices", json!([1, 2])),
        ("target_modules", json!(["embed_tokens"])),
        ("target_modules", Value::Null),
        ("peft_type", json!("LOHA")),
        ("r", json!(0)),
        ("lora_alpha", Value::Null),
    ];
    for (key, value) in refused {
        let said = adapter_with(key, value).unwrap_err().to_string();
        let named = if key == "r" { "rank" } else { key };
        assert!(said.contains(named), "{key}: {said}");
        assert!(said.len() < 500, "{said}");
    }
    let plain = [
        ("use_dora", Value::Null),
        ("use_rslora", Value::Null),
        ("exclude_modules", json!([])),
        ("target_modules", json!(".*_proj")),
        ("use_something_new", json!(false)),
        ("something_new_config", Value::Null),
        ("loftq_config", json!({"loftq_bits": 4})),
        ("peft_version", json!("0.99")),
        ("lora_dropout", json!(0.1)),
        ("a_note", json!("hello")),
    ];
    for (key, value) in plain {
        adapter_with(key, value).unwrap_or_else(|error| panic!("{key}: {error}"));
    }
    let said = adapter_with("bias", json!("x".repeat(100_000))).unwrap_err().to_string();
    assert!(said.len() < 500, "{} bytes", said.len());
}

/// Reads a small Llama configuration of 64 positions with these keys added.
fn read(keys: &Value) -> Result<DecoderConfig, ModelError> {
    let mut json = json!({
        "model_type": "llama",
        "vocab_size": 48,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    });
    for (key, value) in keys.as_object().unwrap() {
        json[key] = value.clone();
    }
    DecoderConfig::from_json(json.as_object().unwrap(), None)
}

fn yarn(factor: f64, original_max_positions: usize) -> RopeScaling {
    RopeScaling::Yarn {
        factor,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: 0.1 * factor.ln() + 1.0,
        truncate: true,
        original_max_positions,
    }
}

/// Checks how rotary settings are read.
fn check_rope(cases: &[(Value, f64, RopeScaling, usize)]) {
    for (keys, theta, scaling, max_positions) in cases {
        let config = read(keys).unwrap_or_else(|error| panic!("{keys}: {error}"));
        assert_eq!(config.rope_theta, *theta, "{keys}");
        assert_eq!(config.rope_scaling, *scaling, "{keys}");
        assert_eq!(config.max_positions, *max_positions, "{keys}");
    }
}

/// The rules of `convert_rope_params_to_dict` and `standardize_rope_params` in transformers 5.24.
#[test]
fn bases_and_types_of_rotary_positions_are_read_as_transformers_reads_them() {
    let inside = json!({"rope_scaling": null, "rope_parameters": {"rope_theta": 2e4}});
    // An empty object counts as absent.
    let empty =
        json!({"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 2.0}});
    let both = json!({
        "rope_theta": 1e6,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6},
    });
    let sections = json!({"rope_scaling": {"rope_type": "default", "mrope_section": [1, 2, 1]}});
    check_rope(&[
        (json!({}), 1e4, RopeScaling::None, 64),
        (json!({"rope_theta": 5e5}), 5e5, RopeScaling::None, 64),
        (inside, 2e4, RopeScaling::None, 64),
        (empty, 1e4, RopeScaling::Linear { factor: 2.0 }, 64),
        (both, 1e6, yarn(4.0, 64), 256),
        (sections, 1e4, RopeScaling::None, 64),
    ]);
}

/// By the same rules: an outer original length has precedence over an inner one, which has precedence over the length.
#[test]
fn original_lengths_are_read_as_transformers_reads_them() {
    let length = "original_max_position_embeddings";
    let inside = json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, length: 16}});
    let beside = json!({"rope_scaling": {"type": "yarn", "factor": 4.0}, length: 16});
    let both =
        json!({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, length: 32}, length: 16});
    // Without a factor, it is the ratio of the lengths.
    let ratio = json!({"rope_scaling": {"type": "yarn", "factor": null, length: 16}});
    check_rope(&[
        (json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}), 1e4, yarn(4.0, 64), 256),
        (inside, 1e4, yarn(4.0, 16), 64),
        (beside, 1e4, yarn(4.0, 16), 64),
        (both, 1e4, yarn(2.0, 16), 64),
        (ratio, 1e4, yarn(4.0, 16), 64),
    ]);
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
    let config = read(&json!({"rope_scaling": llama3, length: 32})).unwrap();
    assert!(matches!(config.rope_scaling, RopeScaling::Llama3 { original_max_positions: 32, .. }));
}

#[test]
fn constants_of_yarn_are_read_as_transformers_reads_them() {
    let scaling = |json: Value| read(&json!({"rope_scaling": json})).unwrap().rope_scaling;
    let untruncated = scaling(json!({"type": "yarn", "factor": 2.0, "truncate": null}));
    assert!(matches!(untruncated, RopeScaling::Yarn { truncate: false, .. }));
    let even = json!({"type": "yarn", "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 0.707});
    assert!(matches!(scaling(even), RopeScaling::Yarn { attention_factor: 1.0, .. }));
    // One of the two keys alone is ignored.
    let one = scaling(json!({"type": "yarn", "factor": 4.0, "mscale": 0.707}));
    assert_eq!(one, yarn(4.0, 64));
}

/// The model cards of Qwen2.5 and Qwen3 describe `YaRN` like this, with the length unchanged.
#[test]
fn yarn_of_the_model_cards_has_its_length() {
    for length in [32_768, 40_960] {
        let config = read(&json!({
            "model_type": "qwen3",
            "max_position_embeddings": length,
            "rope_theta": 1e6,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768},
        }));
        assert_eq!(config.unwrap().max_positions, 131_072);
    }
    // A length that is already extended is not extended again.
    let config = read(&json!({
        "max_position_embeddings": 131_072,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768},
    }));
    assert_eq!(config.unwrap().max_positions, 131_072);
}

#[test]
fn a_configuration_that_contradicts_itself_is_refused() {
    let cases = [
        (
            json!({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}),
            "rope_theta is 1000000 in rope_parameters and 10000 in config.json",
        ),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}}),
            "rope_scaling and rope_parameters contradict each other",
        ),
        (
            json!({
                "rope_scaling": {"type": "yarn", "factor": 2.0},
                "rope_parameters": {"rope_type": "yarn", "factor": 4.0},
            }),
            "rope_scaling and rope_parameters contradict each other",
        ),
        (
            json!({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}}),
            "of the rope_type \"yarn\" and of the type \"linear\"",
        ),
        (json!({"num_hidden_layers": 200_000_000}), "200000000 layers with 1 feed-forward halves"),
    ];
    for (keys, expected) in cases {
        let said = read(&keys).unwrap_err().to_string();
        assert!(said.contains(expected), "{keys}: {said}");
    }
    let experts = json!({"model_type": "qwen3_moe", "num_experts": 4, "num_local_experts": 8, "moe_intermediate_size": 8});
    assert!(read(&experts).unwrap_err().to_string().contains("num_local_experts is 8"));
}

#[test]
fn keys_that_change_no_number_are_passed_over() {
    let plain = read(&json!({})).unwrap();
    let harmless = json!({
        "transformers_version": "99.0", "torch_dtype": "bfloat16", "dtype": "bfloat16", "use_cache": false,
        "attention_dropout": 0.1, "initializer_range": 0.5, "bos_token_id": 1, "eos_token_id": [2, 3],
        "pretraining_tp": 1, "sliding_window": 4096, "use_sliding_window": false, "max_window_layers": 28,
        "layer_types": ["full_attention", "full_attention"], "quantization_config": null, "head_dim": null,
        "hidden_act": "swish", "partial_rotary_factor": 1.0, "rms_norm_eps": null, "unsloth_fixed": true,
        "_name_or_path": "x", "auto_map": {"AutoModelForCausalLM": "modeling.X"},
    });
    assert_eq!(read(&harmless).unwrap(), plain);
    // transformers leaves this in models that it has read from a GGUF file.
    let read_from_gguf = json!({"quantization_config": {"quant_method": "gguf", "gguf_file": "m.Q4_1.gguf", "dequantize": false}});
    assert_eq!(read(&read_from_gguf).unwrap(), plain);
    assert_eq!((plain.rms_norm_eps, plain.head_dim, plain.n_kv_heads), (1e-6, 8, 2));
}

#[test]
fn texts_of_a_file_do_not_fill_an_error() {
    let long = "x".repeat(100_000);
    for (key, value) in [
        ("model_type", json!(long)),
        ("hidden_act", json!(long)),
        ("vocab_size", json!(long)),
        ("layer_types", json!([long])),
        ("architectures", json!([long])),
        ("rope_scaling", json!({"type": long})),
        ("rope_parameters", json!({long.clone(): {}})),
        ("partial_rotary_factor", json!(long)),
        ("quantization_config", json!({"quant_method": long})),
        ("tie_word_embeddings", json!(long)),
    ] {
        let said = read(&json!({key: value})).unwrap_err().to_string();
        assert!(said.contains(if key == "rope_parameters" { "xxx" } else { key }), "{said}");
        assert!(said.len() < 700, "{key}: {} bytes", said.len());
    }
    let directory = copy("qwen3_tied");
    let mut all = tensors(directory.path());
    all.insert(long, (vec![1], Dtype::F32, vec![0; 4]));
    write(directory.path(), &all);
    let said = failure(directory.path());
    assert!(said.contains("is not a part of it") && said.len() < 700, "{} bytes", said.len());
}

#[test]
fn many_tensors_that_do_not_fit_take_a_few_lines() {
    // All experts under the names of another program.
    let directory = copy("qwen3_moe_norm");
    let renamed = tensors(directory.path()).into_iter().map(|(name, tensor)| {
        (name.replace(".mlp.experts.", ".block_sparse_moe.experts."), tensor)
    });
    write(directory.path(), &renamed.collect());
    let said = failure(directory.path());
    assert!(said.lines().count() <= 8, "{said}");
    let expected = "model.layers.1.mlp.experts.0.gate_proj.weight [32, 48] is missing (and 3 more tensors like it)";
    assert!(said.contains(expected), "{said}");
    let expected = "model.layers.1.block_sparse_moe.experts.0.down_proj.weight [48, 32] is not a part of it (and 3 more tensors like it)";
    assert!(said.contains(expected), "{said}");
}

#[test]
fn experts_in_one_tensor_that_do_not_fit_are_refused_in_a_line() {
    let directory = tempfile::tempdir().unwrap();
    let source = case("experts_in_one").join("model");
    fs::copy(source.join("config.json"), directory.path().join("config.json")).unwrap();
    let with = |edit: &dyn Fn(&mut TensorMap)| {
        let mut all = tensors(&source);
        edit(&mut all);
        write(directory.path(), &all);
        failure(directory.path())
    };
    let name = "model.layers.1.mlp.experts.gate_up_proj";
    let said = with(&|all| all.get_mut(name).unwrap().0 = vec![4, 8, 32]);
    assert!(said.contains(&format!("{name} is [4, 8, 32] and must be [4, 16, 16]")), "{said}");
    assert!(!said.contains("missing"), "{said}");
    let said = with(&|all| {
        let one = (vec![8, 16], Dtype::F32, vec![0; 512]);
        all.insert("model.layers.1.mlp.experts.0.up_proj.weight".to_owned(), one);
    });
    assert!(said.contains("experts"), "{said}");
    let said = with(&|all| {
        all.remove(name);
    });
    assert!(
        said.contains(
            "model.layers.1.mlp.experts.0.gate_proj.weight [8, 16] is missing (and 3 more"
        ),
        "{said}"
    );
}

#[test]
fn a_model_that_sees_what_follows_is_refused() {
    let said = read(&json!({"is_causal": false})).unwrap_err().to_string();
    assert!(said.contains("is_causal is false; supported: true"), "{said}");
    read(&json!({"is_causal": true})).unwrap();
}
