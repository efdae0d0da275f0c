use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;
use tempfile::TempDir;

use super::fixture::{NAMES, directory};
use super::refusals::failure;
use super::variants::{perturbed, variants};
use crate::architecture::QueryKeyNorm;
use crate::layout::Spec;
use crate::{Decoder, DecoderConfig, ModelError};

/// Copies a reference model, for a test to damage.
pub(super) fn copy(name: &str) -> TempDir {
    let target = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(directory(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), target.path().join(entry.file_name())).unwrap();
    }
    target
}

/// The JSON object in a file.
fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

pub(super) fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut json = read_json(path);
    edit(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

/// Shape, type and bytes of tensors.
pub(super) type TensorMap = BTreeMap<String, (Vec<usize>, Dtype, Vec<u8>)>;

/// Shape, type and bytes of every tensor of a checkpoint, whichever file it is in.
pub(super) fn tensors(directory: &Path) -> TensorMap {
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let is_weights = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("model") && name.ends_with(".safetensors")
    };
    let mut all = BTreeMap::new();
    for path in files.filter(is_weights) {
        let bytes = fs::read(path).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().iter() {
            let tensor = (view.shape().to_vec(), view.dtype(), view.data().to_vec());
            assert_eq!(all.insert(name.to_owned(), tensor), None);
        }
    }
    all
}

/// Writes tensors over those of a checkpoint of one file.
pub(super) fn write(directory: &Path, tensors: &TensorMap) {
    let views = tensors.iter().map(|(name, (shape, dtype, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let path = directory.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &path).unwrap();
}

#[test]
fn a_saved_checkpoint_is_the_one_that_was_read() {
    for name in NAMES {
        for form in ["config.json", "config_legacy.json"] {
            let source = copy(name);
            fs::copy(directory(name).join(form), source.path().join("config.json")).unwrap();
            let model = Decoder::from_directory(source.path()).unwrap();
            let target = tempfile::tempdir().unwrap();
            model.save(target.path()).unwrap();
            assert_eq!(tensors(target.path()), tensors(source.path()), "{name}");
            let config = |directory: &TempDir| read_json(&directory.path().join("config.json"));
            assert_eq!(config(&target), config(&source), "{name}");
            assert_eq!(fs::read_dir(target.path()).unwrap().count(), 2);

            let again = Decoder::from_directory(target.path()).unwrap();
            assert_eq!(again.config(), model.config());
            let ids: Vec<u32> = (0..50).collect();
            assert_eq!(again.logits(&ids).unwrap(), model.logits(&ids).unwrap());
        }
    }
}

#[test]
fn a_model_that_was_made_here_is_read_back() {
    for config in variants() {
        let model = perturbed(config.clone(), 7);
        let target = tempfile::tempdir().unwrap();
        model.save(target.path()).unwrap();
        let again = Decoder::from_directory(target.path()).unwrap();
        assert_eq!(again.config(), &config);
        let ids: Vec<u32> = (0..50).collect();
        assert_eq!(again.logits(&ids).unwrap(), model.logits(&ids).unwrap());
    }
}

#[test]
fn weights_of_half_precision_are_saved_in_it_and_trained_in_full() {
    for (dtype, name) in [(Dtype::BF16, "bfloat16"), (Dtype::F16, "float16")] {
        let source = copy("qwen3_moe_norm");
        let mut halves = tensors(source.path());
        for (_, kind, bytes) in halves.values_mut() {
            let numbers = bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word));
            *kind = dtype;
            *bytes = match dtype {
                Dtype::BF16 => numbers.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
                _ => numbers.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
            };
        }
        write(source.path(), &halves);
        edit_json(&source.path().join("config.json"), |json| json["dtype"] = name.into());
        let model = Decoder::from_directory(source.path()).unwrap();
        let target = tempfile::tempdir().unwrap();
        model.save(target.path()).unwrap();
        assert_eq!(tensors(target.path()), halves);
        assert_eq!(read_json(&target.path().join("config.json"))["dtype"], name);

        // Changes of training may be too small for half precision: to continue, a learner needs all of them.
        let mut values = model.values().unwrap();
        values.iter_mut().flatten().for_each(|value| *value *= 1.0001);
        model.set_values(values.clone()).unwrap();
        model.save_exactly(target.path(), &turnwise_rollout::Meter::default()).unwrap();
        let again = Decoder::from_directory(target.path()).unwrap();
        assert_eq!(again.values().unwrap(), values);
        assert_eq!(read_json(&target.path().join("config.json"))["dtype"], "float32");
    }
}

#[test]
fn what_follows_from_the_configuration_may_be_stored_too() {
    let source = copy("qwen3_tied");
    let mut with_more = tensors(source.path());
    let embedding = with_more["model.embed_tokens.weight"].clone();
    with_more.insert("lm_head.weight".to_owned(), embedding.clone());
    let frequencies = (vec![8], Dtype::F32, vec![0; 32]);
    with_more.insert("model.rotary_emb.inv_freq".to_owned(), frequencies.clone());
    with_more.insert("model.layers.1.self_attn.rotary_emb.inv_freq".to_owned(), frequencies);
    write(source.path(), &with_more);
    let plain = Decoder::from_directory(&directory("qwen3_tied")).unwrap();
    let model = Decoder::from_directory(source.path()).unwrap();
    assert_eq!(model.values().unwrap(), plain.values().unwrap());
    model.save(source.path()).unwrap();
    assert_eq!(tensors(source.path()), tensors(&directory("qwen3_tied")));

    // A different head must not be lost.
    let (shape, dtype, mut bytes) = embedding;
    bytes[3] ^= 1;
    bytes[400] ^= 1;
    with_more.insert("lm_head.weight".to_owned(), (shape, dtype, bytes));
    write(source.path(), &with_more);
    let failure = failure(source.path());
    assert!(
        failure.contains("lm_head.weight [384, 48] differs from model.embed_tokens.weight in 2"),
        "{failure}"
    );
}

#[test]
fn a_configuration_may_leave_out_what_has_a_default() {
    for name in NAMES {
        let source = copy(name);
        let model = Decoder::from_directory(source.path()).unwrap();
        edit_json(&source.path().join("config.json"), |json| {
            let json = json.as_object_mut().unwrap();
            // Gains of heads give the width of a head that the other widths do not.
            for key in ["architectures", "hidden_act", "dtype"] {
                json.remove(key);
            }
            if model.config().architecture.properties().query_key_norm == QueryKeyNorm::Heads {
                json.remove("head_dim");
            }
            if model.config().sliding_window.is_none() {
                json.remove("layer_types");
            }
        });
        assert_eq!(Decoder::from_directory(source.path()).unwrap().config(), model.config());
    }
    // By default there are as many key heads as query heads.
    let target = tempfile::tempdir().unwrap();
    let config = DecoderConfig { n_kv_heads: 6, ..variants()[1].clone() };
    Decoder::random(config.clone(), 1).unwrap().save(target.path()).unwrap();
    edit_json(&target.path().join("config.json"), |json| {
        json["num_key_value_heads"] = Value::Null;
        json.as_object_mut().unwrap().remove("max_position_embeddings");
    });
    let read = Decoder::from_directory(target.path()).unwrap();
    assert_eq!(read.config(), &DecoderConfig { max_positions: 2048, ..config });
}

#[test]
fn half_precision_is_widened_exactly() {
    let source = Decoder::random(DecoderConfig::small(11), 1).unwrap();
    let specs = source.trainable_specs();
    // Values that both formats represent exactly, with their bits.
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
fn scoring_says_which_token_is_wrong() {
    let model = Decoder::random(DecoderConfig::small(11), 1).unwrap();
    let error = model.score(&[vec![1, 2], vec![3, 11]]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot score sequence 1: token 11 at position 1 is beyond the vocabulary of 11"
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
