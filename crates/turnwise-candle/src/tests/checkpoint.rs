use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::fixture::{NAMES, directory};
use crate::layout::Spec;
use crate::{Decoder, DecoderConfig, ModelError};

/// A copy of a reference model that a test may damage.
pub(super) fn copy(name: &str) -> TempDir {
    let target = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(directory(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), target.path().join(entry.file_name())).unwrap();
    }
    target
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

/// What the error and its sources say.
fn failure(directory: &Path) -> String {
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
fn a_saved_model_is_the_loaded_one() {
    for name in NAMES {
        let model = Decoder::from_directory(&directory(name)).unwrap();
        let target = tempfile::tempdir().unwrap();
        model.save(target.path()).unwrap();
        let again = Decoder::from_directory(target.path()).unwrap();
        assert_eq!(again.config(), model.config());
        assert_eq!(again.values().unwrap(), model.values().unwrap());

        let bytes = fs::read(target.path().join("model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut names = tensors.names();
        names.sort_unstable();
        assert_eq!(names.contains(&"lm_head.weight"), !model.config().tie_word_embeddings);
        if name == "qwen3_tied" {
            let original = fs::read(directory(name).join("model.safetensors")).unwrap();
            let original = safetensors::SafeTensors::deserialize(&original).unwrap();
            let mut expected = original.names();
            expected.sort_unstable();
            assert_eq!(names, expected);
        }
        // What the original said besides sizes is still there.
        let config = fs::read(target.path().join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["initializer_range"], json!(0.02));
        assert_eq!(fs::read_dir(target.path()).unwrap().count(), 2);
    }
}

#[test]
fn half_precision_is_widened_exactly() {
    let source = Decoder::random(DecoderConfig::small(11), 1).unwrap();
    let specs = source.specs();
    // Values that both formats hold exactly, with their bits.
    let table: [(f32, u16, u16); 6] = [
        (0.0, 0x0000, 0x0000),
        (-1.0, 0xbf80, 0xbc00),
        (0.5, 0x3f00, 0x3800),
        (-1.75, 0xbfe0, 0xbf00),
        (2.0_f32.powi(-24), 0x3380, 0x0001),
        (-3.0 * 2.0_f32.powi(-16), 0xb840, 0x8300),
    ];
    let entries = |spec: &Spec| (0..spec.len()).map(|i| table[i % table.len()]);
    for dtype in [Dtype::BF16, Dtype::F16] {
        let half = |(_, bf16, f16): (f32, u16, u16)| if dtype == Dtype::BF16 { bf16 } else { f16 };
        let target = tempfile::tempdir().unwrap();
        source.save(target.path()).unwrap();
        let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = specs
            .iter()
            .map(|spec| {
                let bytes = entries(spec).flat_map(|entry| half(entry).to_le_bytes()).collect();
                (spec.name.clone(), spec.shape.clone(), bytes)
            })
            .collect();
        let views = bytes.iter().map(|(name, shape, bytes)| {
            (name, TensorView::new(dtype, shape.clone(), bytes).unwrap())
        });
        let path = target.path().join("model.safetensors");
        safetensors::serialize_to_file(views, None, &path).unwrap();
        let model = Decoder::from_directory(target.path()).unwrap();
        let expected =
            specs.iter().map(|spec| entries(spec).map(|entry| entry.0).collect::<Vec<_>>());
        assert_eq!(model.values().unwrap(), expected.collect::<Vec<_>>());
    }
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
fn tensors_that_do_not_fit_are_named_with_their_shapes() {
    let failure = failure_with(|json| json["tie_word_embeddings"] = false.into());
    assert!(failure.contains("lm_head.weight [384, 48] is missing"), "{failure}");
    let failure = failure_with(|json| json["intermediate_size"] = 97.into());
    assert!(
        failure.contains("model.layers.0.mlp.down_proj.weight is [48, 96] and must be [48, 97]"),
        "{failure}"
    );
    let failure = failure_with(|json| json["num_hidden_layers"] = 1.into());
    assert!(
        failure.contains("model.layers.1.input_layernorm.weight [48] is not a part"),
        "{failure}"
    );
    assert!(failure.contains("and 5 more"), "{failure}");
}

#[test]
fn what_is_not_computed_is_refused() {
    let cases: [(&str, Value, &str); 12] = [
        ("model_type", json!("gpt2"), "\"gpt2\"; \"qwen3\" is supported"),
        ("hidden_act", json!("gelu"), "hidden_act"),
        ("attention_bias", json!(true), "attention_bias"),
        ("use_sliding_window", json!(true), "use_sliding_window"),
        ("rope_scaling", json!({"type": "yarn", "factor": 4.0}), "rope_scaling"),
        ("rope_parameters", json!({"rope_type": "llama3"}), "rope_parameters"),
        ("quantization_config", json!({"bits": 4}), "quantised"),
        ("num_key_value_heads", json!(3), "multiple"),
        ("hidden_size", json!(0), "hidden_size"),
        ("hidden_size", json!("48"), "hidden_size"),
        ("head_dim", json!(15), "even"),
        ("rms_norm_eps", json!(-1.0), "rms_norm_eps"),
    ];
    for (key, value, expected) in cases {
        let failure = failure_with(|json| json[key] = value);
        assert!(failure.contains(expected), "{key}: {failure}");
    }
    assert!(failure_with(|json| *json = json!([1])).contains("config.json"));
    assert!(failure_with(|json| json["vocab_size"] = Value::Null).contains("vocab_size"));
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
    let directory = copy("qwen3_untied");
    fs::remove_file(directory.path().join("model-00003-of-00004.safetensors")).unwrap();
    assert!(failure(directory.path()).contains("model-00003-of-00004.safetensors"));
}

#[test]
fn scoring_says_which_token_is_wrong() {
    let model = Decoder::random(DecoderConfig::small(11), 1).unwrap();
    let error = model.score(&[vec![1, 2], vec![3, 11]]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "score sequence 1: token 11 at position 1 is beyond the vocabulary of 11"
    );
    let error = model.score(&[vec![0; 257]]).unwrap_err();
    assert!(matches!(error, ModelError::TooLong { length: 257, .. }));
    assert_eq!(model.score(&[vec![], vec![3]]).unwrap(), vec![Vec::<f32>::new(), vec![]]);
    let scored = model.score(&[vec![], vec![3, 4, 5], vec![], vec![6, 7]]).unwrap();
    assert_eq!(scored.iter().map(Vec::len).collect::<Vec<_>>(), [0, 2, 0, 1]);
}

#[test]
fn random_models_follow_their_seed() {
    let values = |seed| Decoder::random(DecoderConfig::small(11), seed).unwrap().values().unwrap();
    assert_eq!(values(1), values(1));
    assert_ne!(values(1), values(2));
    assert!(Decoder::random(DecoderConfig { n_heads: 3, ..DecoderConfig::small(11) }, 1).is_err());
}
