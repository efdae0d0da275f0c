//! What `config.json` and files of the families have that is not common to all.

use std::fs;

use serde_json::{Value, json};

use super::checkpoint::{copy, edit_json, tensors, write};
use super::fixture::Fixture;
use super::variants::{perturbed, variants};
use crate::{
    Architecture, Decoder, DecoderConfig, LoraSettings, LoraTarget, ModelError, RopeScaling,
    SlidingWindow,
};

/// Reads a small configuration with some keys.
fn read(keys: &Value) -> Result<DecoderConfig, ModelError> {
    let mut json = json!({
        "vocab_size": 48,
        "hidden_size": 64,
        "intermediate_size": 24,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
    });
    for (key, value) in keys.as_object().unwrap() {
        json[key] = value.clone();
    }
    DecoderConfig::from_json(json.as_object().unwrap(), None)
}

/// The expected values are those of transformers 5.24 for the same keys.
#[test]
fn what_a_configuration_leaves_out_is_what_transformers_has() {
    let windows = |keys: Value| {
        let window = read(&keys).unwrap().sliding_window;
        window.map(|SlidingWindow { length, layers }| (length, layers))
    };
    assert_eq!(windows(json!({"model_type": "mistral"})), Some((4096, (0..6).collect())));
    assert_eq!(windows(json!({"model_type": "mistral", "sliding_window": null})), None);
    assert_eq!(windows(json!({"model_type": "mixtral"})), None);
    assert_eq!(windows(json!({"model_type": "phi3"})), None);
    let gemma = windows(json!({"model_type": "gemma3_text"}));
    assert_eq!(gemma, Some((4096, vec![0, 1, 2, 3, 4])));
    let pattern = json!({"model_type": "gemma3_text", "sliding_window_pattern": 2});
    assert_eq!(windows(pattern), Some((4096, vec![0, 2, 4])));
    let on = json!({"model_type": "qwen2", "use_sliding_window": true, "max_window_layers": 4});
    assert_eq!(windows(on), Some((4096, vec![4, 5])));
    assert_eq!(windows(json!({"model_type": "qwen3", "use_sliding_window": true})), None);
    assert_eq!(windows(json!({"model_type": "qwen2", "sliding_window": 8})), None);
    let smollm = json!({"model_type": "smollm3", "use_sliding_window": true, "sliding_window": 8});
    assert_eq!(windows(smollm), Some((8, vec![3])));

    let numbers = |keys: Value| {
        let config = read(&keys).unwrap();
        (config.max_positions, config.rope_theta, config.rms_norm_eps, config.tie_word_embeddings)
    };
    let cases = [
        ("mistral", (131_072, 1e4, 1e-6, false)),
        ("mixtral", (131_072, 1e6, 1e-5, false)),
        ("gemma3_text", (131_072, 1e6, 1e-6, true)),
        ("smollm3", (32_768, 2e6, 1e-6, true)),
        ("granite", (2048, 1e4, 1e-6, false)),
        ("olmo2", (2048, 1e4, 1e-5, false)),
        ("phi3", (4096, 1e4, 1e-5, false)),
    ];
    for (model_type, expected) in cases {
        assert_eq!(numbers(json!({"model_type": model_type})), expected, "{model_type}");
    }
    // As Gemma 3 4B leaves it out.
    let gemma = read(&json!({"model_type": "gemma3_text"})).unwrap();
    assert_eq!((gemma.head_dim, gemma.n_kv_heads), (256, 4));
}

#[test]
fn a_long_rope_ends_at_the_original_length() {
    let keys = json!({
        "model_type": "phi3",
        "max_position_embeddings": 131_072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "su", "short_factor": [1.0, 1.5], "long_factor": [2.0, 9.0]},
        "partial_rotary_factor": 0.5,
    });
    let config = read(&keys).unwrap();
    assert_eq!(config.max_positions, 4096);
    let RopeScaling::LongRope { attention_factor, .. } = config.rope_scaling else { panic!() };
    assert!((attention_factor - (1.0 + 32_f64.ln() / 4096_f64.ln()).sqrt()).abs() < 1e-12);
    let longer = DecoderConfig { max_positions: 4097, ..config.clone() };
    assert!(longer.validate().unwrap_err().to_string().contains("at most original_max_positions"));
    let mut keys = keys;
    keys["partial_rotary_factor"] = json!(1.0);
    let refused = read(&keys).unwrap_err().to_string();
    assert!(refused.contains("short_factor has 2 numbers and must have 4"), "{refused}");
}

#[test]
fn windows_that_a_family_cannot_have_are_refused() {
    let refusal = |architecture, length, layers: &[usize]| {
        let sliding_window = Some(SlidingWindow { length, layers: layers.to_vec() });
        let config = DecoderConfig { architecture, sliding_window, ..DecoderConfig::small(29) };
        config.validate().unwrap_err().to_string()
    };
    let qwen = || Architecture::Qwen3 { attention_bias: false };
    assert!(refusal(Architecture::Mistral, 8, &[0]).contains("in all of its layers or in none"));
    assert!(refusal(qwen(), 8, &[2]).contains("layer 2 has a sliding window, and there are 2"));
    assert!(refusal(qwen(), 8, &[]).contains("no layer has the sliding window"));
    assert!(refusal(qwen(), 0, &[1]).contains("the sliding window is 0"));
    let llama = Architecture::Llama { attention_bias: false, mlp_bias: false };
    assert!(refusal(llama, 8, &[0, 1]).contains("a llama has no sliding window"));
}

#[test]
fn a_gemma_with_images_is_read_as_its_text_model() {
    let text = Fixture::load("gemma3_text").model;
    for prefix in ["language_model.model.", "model.language_model."] {
        let source = copy("gemma3_text");
        let named = tensors(source.path()).into_iter();
        let mut named: super::checkpoint::TensorMap = named
            .map(|(name, tensor)| (format!("{prefix}{}", &name["model.".len()..]), tensor))
            .collect();
        let image = named.values().next().unwrap().clone();
        for name in ["vision_tower.embeddings.weight", "model.multi_modal_projector.weight"] {
            named.insert(name.to_owned(), image.clone());
        }
        write(source.path(), &named);
        edit_json(&source.path().join("config.json"), |json| {
            let mut own = json.take();
            own.as_object_mut().unwrap().remove("architectures");
            *json = json!({
                "architectures": ["Gemma3ForConditionalGeneration"],
                "model_type": "gemma3",
                "text_config": own,
                "vision_config": {"hidden_size": 8},
            });
        });
        let model = Decoder::from_directory(source.path()).unwrap();
        assert_eq!(model.logits(&[1, 2, 3]).unwrap(), text.logits(&[1, 2, 3]).unwrap());
        let saved = tempfile::tempdir().unwrap();
        model.save(saved.path()).unwrap();
        let again = Decoder::from_directory(saved.path()).unwrap();
        assert_eq!(again.config(), text.config());
        let json = fs::read_to_string(saved.path().join("config.json")).unwrap();
        assert!(json.contains("\"gemma3_text\"") && json.contains("Gemma3ForCausalLM"), "{json}");
    }
}

#[test]
fn adapters_of_joined_matrices_have_the_names_of_peft() {
    let lora = LoraSettings::default();
    let all = variants();
    let joined = |config: &&DecoderConfig| matches!(config.architecture, Architecture::Phi3 { .. });
    let phi = all.iter().find(joined).unwrap();
    let model = perturbed(phi.clone(), 1).with_lora(&lora, 1).unwrap();
    let directory = tempfile::tempdir().unwrap();
    model.save_adapter(directory.path()).unwrap();
    let path = directory.path().join("adapter_config.json");
    let json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let targets = json!(["o_proj", "down_proj", "qkv_proj", "gate_up_proj"]);
    assert_eq!(json["target_modules"], targets);
    let names = model.trainable_specs().into_iter().map(|spec| spec.name);
    let names: Vec<String> = names.filter(|name| name.contains("layers.0.")).collect();
    let expected = ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"];
    let expected = expected.iter().flat_map(|module| {
        ["lora_A", "lora_B"]
            .map(|part| format!("base_model.model.model.layers.0.{module}.{part}.weight"))
    });
    assert_eq!(names, expected.collect::<Vec<_>>());
    perturbed(phi.clone(), 1).with_adapter(directory.path()).unwrap();

    for (config, target) in [(phi, LoraTarget::Query), (&all[1], LoraTarget::QueryKeyValue)] {
        let settings = LoraSettings { targets: vec![target], ..lora.clone() };
        let refused = perturbed(config.clone(), 1).with_lora(&settings, 1).unwrap_err().to_string();
        let expected = format!("the target {} is no matrix of a ", target.name());
        assert!(refused.contains(&expected) && refused.contains("o_proj"), "{refused}");
    }
}
