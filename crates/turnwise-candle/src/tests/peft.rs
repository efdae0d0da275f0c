//! Adapters of PEFT: the forms of its settings, compared with what PEFT computes, and refusals.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use turnwise_rollout::Meter;

use super::checkpoint::edit_json;
use super::fixture::{directory, distance, doubles, integers};
use crate::{Decoder, DecoderConfig, LoraSettings, LoraTarget, locate_base};

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn base() -> Decoder {
    Decoder::from_directory(&directory("qwen3_tied")).unwrap()
}

/// The adapters; `make_forms.py` above them says how PEFT made them.
#[test]
fn every_form_of_settings_computes_what_peft_computes() {
    let forms = directory("../adapters/forms");
    let expected = read_json(&forms.join("expected.json"));
    let ids = [integers(&expected["ids"])];
    for (name, theirs) in expected["logprobs"].as_object().unwrap() {
        let model = base().with_adapter(&forms.join(name)).unwrap();
        let ours = model.score(&ids).unwrap().concat();
        let error = distance(&ours, &doubles(theirs));
        assert!(error < 5e-5, "{name}: {error}");
        // What is saved means the same, in the plainest form.
        let again = tempfile::tempdir().unwrap();
        model.save_adapter(again.path()).unwrap();
        let again = base().with_adapter(again.path()).unwrap();
        assert_eq!(again.lora(), model.lora(), "{name}");
        assert_eq!(again.score(&ids).unwrap().concat(), ours, "{name}");
    }
}

#[test]
fn an_adapter_beside_its_model_is_a_part_of_it() {
    let adapter = directory("../adapters/qwen3_tied");
    let both = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(directory("qwen3_tied").join(name), both.path().join(name)).unwrap();
    }
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(adapter.join(name), both.path().join(name)).unwrap();
    }
    let base = locate_base(both.path(), None).unwrap();
    let model = Decoder::load(both.path(), base.as_deref(), &Meter::default()).unwrap();
    let expected = read_json(&adapter.join("expected.json"));
    let ours = model.score(&[integers(&expected["ids"])]).unwrap().concat();
    assert!(distance(&ours, &doubles(&expected["logprobs"])) < 5e-5);
}

#[test]
fn a_base_without_weights_is_named_together_with_what_to_do() {
    let base = tempfile::tempdir().unwrap();
    fs::copy(directory("qwen3_tied").join("config.json"), base.path().join("config.json")).unwrap();
    let adapter = directory("../adapters/qwen3_tied");
    let base = locate_base(&adapter, Some(base.path())).unwrap();
    let failure = Decoder::load(&adapter, base.as_deref(), &Meter::default()).unwrap_err();
    let failure = failure.to_string();
    assert!(failure.contains("has no weights; name one that has them as model.base"), "{failure}");
}

/// Writes an adapter of a small model, changes its settings, and returns what reading it says.
fn refusal(edit: impl FnOnce(&mut Value)) -> String {
    let small = || Decoder::random(DecoderConfig::small(29), 4).unwrap();
    let directory = tempfile::tempdir().unwrap();
    small().with_lora(&LoraSettings::default(), 1).unwrap().save_adapter(directory.path()).unwrap();
    edit_json(&directory.path().join("adapter_config.json"), edit);
    small().with_adapter(directory.path()).unwrap_err().to_string()
}

#[test]
fn settings_that_cannot_be_followed_name_their_key_and_what_to_do() {
    let all =
        || json!(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]);
    let cases = [
        ("rank_pattern", json!({"q_proj": 2})),
        ("alpha_pattern", json!({r"layers\.0.*": 3})),
        ("target_modules", json!(["q_proj", "lm_head"])),
        ("target_modules", json!(["q_proj", "embed_tokens"])),
        ("target_modules", json!(r".*layers\.0\..*q_proj")),
        ("target_modules", json!(["model.layers.1.self_attn.q_proj"])),
        ("layers_to_transform", json!([1])),
        ("exclude_modules", json!(["layers.0.self_attn.q_proj"])),
        ("modules_to_save", json!(["lm_head"])),
        ("use_dora", json!(true)),
        ("use_of_tomorrow", json!(true)),
        ("lora_bias", json!(true)),
        ("peft_type", json!("LOHA")),
    ];
    for (key, value) in cases {
        let said = refusal(|json| {
            json["target_modules"] = all();
            json[key] = value.clone();
        });
        let key = if key == "exclude_modules" { "target_modules" } else { key };
        let place = format!("adapter_config.json has {key}").replace("has peft", "has the peft");
        assert!(said.contains(&place) && said.contains("merge_and_unload()"), "{value}: {said}");
        assert!(!said.contains('\n') && said.len() < 600, "{value}: {said}");
    }
    let cases = [
        ("target_modules", json!("(q_proj"), "an expression in target_modules that cannot be used"),
        ("rank_pattern", json!({"[": 2}), "an expression in rank_pattern that cannot be used"),
        ("target_modules", json!(["query"]), "target_modules = [\"query\"], which is no matrix"),
        ("target_modules", json!([1]), "names 1 in target_modules, which is not text"),
        ("target_modules", json!(1), "has target_modules = 1"),
        ("target_modules", json!([]), "has no target_modules"),
        ("rank_pattern", json!([1]), "has rank_pattern = [1]"),
        ("r", json!("two"), "has no rank r"),
        ("r", json!(0), "the rank is 0"),
    ];
    for (key, value, expected) in cases {
        let said = refusal(|json| json[key] = value.clone());
        assert!(said.contains(expected) && !said.contains('\n'), "{value}: {said}");
    }
}

#[test]
fn an_expression_without_end_is_refused() {
    let said = refusal(|json| json["target_modules"] = r"(?=(\w+\.?)*\d$)(\w+\.?)*\d".into());
    assert!(said.contains("target_modules"), "{said}");
}

#[test]
fn weights_that_peft_saves_with_an_adapter_are_named() {
    let small = Decoder::random(DecoderConfig::small(29), 4).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let targets = vec![LoraTarget::Query];
    let adapted = small.with_lora(&LoraSettings { targets, ..LoraSettings::default() }, 1).unwrap();
    adapted.save_adapter(directory.path()).unwrap();
    let path = directory.path().join("adapter_model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let own = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut views: BTreeMap<String, TensorView<'_>> = own.tensors().into_iter().collect();
    let numbers = vec![0; 4 * 29 * 64];
    let embedding = TensorView::new(Dtype::F32, vec![29, 64], &numbers).unwrap();
    views.insert("base_model.model.model.embed_tokens.weight".to_owned(), embedding);
    safetensors::serialize_to_file(views, None, &path).unwrap();
    let said = adapted.merged().unwrap().with_adapter(directory.path()).unwrap_err().to_string();
    assert!(said.contains("holds base_model.model.model.embed_tokens.weight"), "{said}");
    assert!(said.contains("save_embedding_layers=False"), "{said}");
}
