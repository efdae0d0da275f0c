//! GGUF files, compared with what transformers and gguf-py read.

use std::fs;
use std::io::Cursor;
use std::path::PathBuf;

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::gguf_file::{self, Value as Entry};
use serde_json::Value;
use turnwise_rollout::Meter;

use super::fixture::{distance, doubles, integers};
use crate::{Decoder, GgufFile, ModelError, RopeScaling};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/gguf").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(name)).unwrap()).unwrap()
}

/// Loads the bytes of a file.
fn load(bytes: &[u8]) -> Result<Decoder, ModelError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    Decoder::from_gguf(&path, &Meter::default())
}

#[test]
fn log_probabilities_are_those_of_transformers() {
    let expected = json("expected.json");
    for name in ["llama", "sentencepiece", "gemma3", "phi3"] {
        let path = fixture(&format!("{name}.gguf"));
        let model = Decoder::load(&path, None, &Meter::default()).unwrap();
        for row in expected[name].as_array().unwrap() {
            let ours = model.score(&[integers(&row["ids"])]).unwrap();
            let error = distance(&ours[0], &doubles(&row["logprobs"]));
            assert!(error < 5e-5, "{name}, {}: {error}", row["text"]);
        }
    }
}

#[test]
fn every_quantisation_is_read_as_gguf_py_reads_it() {
    let kinds = [
        ("F32", GgmlDType::F32),
        ("F16", GgmlDType::F16),
        ("BF16", GgmlDType::BF16),
        ("Q4_0", GgmlDType::Q4_0),
        ("Q4_1", GgmlDType::Q4_1),
        ("Q5_0", GgmlDType::Q5_0),
        ("Q5_1", GgmlDType::Q5_1),
        ("Q8_0", GgmlDType::Q8_0),
        ("Q4_K", GgmlDType::Q4K),
        ("Q5_K", GgmlDType::Q5K),
        ("Q6_K", GgmlDType::Q6K),
    ];
    let rows = json("blocks.json");
    for (name, kind) in kinds {
        let hex = rows[name]["bytes"].as_str().unwrap();
        let bytes = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
        let bytes: Vec<u8> = bytes.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
        let expected = doubles(&rows[name]["numbers"]);
        let tensor = qtensor_from_ggml(kind, &bytes, vec![1, 256], &Device::Cpu).unwrap();
        let mut file = Cursor::new(Vec::new());
        gguf_file::write(&mut file, &[], &[("row", &tensor)]).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("row.gguf");
        fs::write(&path, file.into_inner()).unwrap();
        let ours = GgufFile::open(&path).unwrap().numbers("row").unwrap();
        let largest = expected.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
        let error = distance(&ours, &expected) / largest;
        assert!(error < 1e-6, "{name}: {error}");
    }
}

#[test]
fn a_model_from_a_file_is_saved_as_a_checkpoint() {
    let model = Decoder::from_gguf(&fixture("llama.gguf"), &Meter::default()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    model.save(directory.path()).unwrap();
    let again = Decoder::from_directory(directory.path()).unwrap();
    let ids = vec![vec![41, 87, 274, 290, 15]];
    assert_eq!(again.score(&ids).unwrap(), model.score(&ids).unwrap());
    let config: Value =
        serde_json::from_slice(&fs::read(directory.path().join("config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"][0], "LlamaForCausalLM");
    assert_eq!((&config["rms_norm_eps"], &config["eos_token_id"]), (&1e-5.into(), &2.into()));
}

#[test]
fn a_damaged_file_is_refused_by_name() {
    let whole = fs::read(fixture("llama.gguf")).unwrap();
    for length in [0, 3, 4, 20, 1000, whole.len() / 2, whole.len() - 40] {
        let refusal = load(&whole[..length]).unwrap_err().to_string();
        assert!(refusal.contains("model.gguf"), "{length}: {refusal}");
        assert!(refusal.len() < 400, "{length}: {refusal}");
    }
    // Any byte of the header may be wrong: never a panic, and never a model of another shape.
    for place in 0..2000 {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x41;
        if let Ok(model) = load(&bytes) {
            assert_eq!(model.config().hidden_size, 64, "{place}");
        }
    }
}

#[test]
fn a_family_that_is_not_supported_is_named() {
    let name = Entry::String("falcon".to_owned());
    // On the heap, because the library reads numbers where the bytes are.
    let zeros = vec![0; 64];
    let tensor = qtensor_from_ggml(GgmlDType::F32, &zeros, vec![4, 4], &Device::Cpu).unwrap();
    let count = |n: u32| Entry::U32(n);
    let keys = [
        ("general.architecture", name),
        ("falcon.attention.head_count", count(2)),
        ("falcon.embedding_length", count(4)),
        ("falcon.block_count", count(1)),
        ("falcon.feed_forward_length", count(4)),
        ("falcon.context_length", count(4)),
        ("falcon.attention.layer_norm_rms_epsilon", Entry::F32(1e-5)),
    ];
    let keys: Vec<_> = keys.iter().map(|(key, value)| (*key, value)).collect();
    let mut file = Cursor::new(Vec::new());
    gguf_file::write(&mut file, &keys, &[("token_embd.weight", &tensor)]).unwrap();
    let refusal = load(&file.into_inner()).unwrap_err().to_string();
    assert!(refusal.contains("falcon") && refusal.contains("qwen3"), "{refusal}");
}

/// Returns the bytes of the Llama of the fixtures with other metadata.
fn with_keys(keys: &[(&str, Entry)]) -> Vec<u8> {
    let bytes = fs::read(fixture("llama.gguf")).unwrap();
    let mut reader = Cursor::new(&bytes);
    let own = gguf_file::Content::read(&mut reader).unwrap();
    let tensors: Vec<_> = own
        .tensor_infos
        .keys()
        .map(|name| (name.as_str(), own.tensor(&mut reader, name, &Device::Cpu).unwrap()))
        .collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let mut metadata: Vec<(&str, &Entry)> =
        own.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    metadata.retain(|(key, _)| keys.iter().all(|(other, _)| other != key));
    metadata.extend(keys.iter().map(|(key, value)| (*key, value)));
    let mut file = Cursor::new(Vec::new());
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    file.into_inner()
}

#[test]
fn scalings_of_positions_are_read_as_llama_cpp_reads_them() {
    let text = |text: &str| Entry::String(text.to_owned());
    let scaling =
        |keys: &[(&str, Entry)]| load(&with_keys(keys)).unwrap().config().rope_scaling.clone();
    let (kind, factor) = ("llama.rope.scaling.type", "llama.rope.scaling.factor");
    let (old, attention) = ("llama.rope.scale_linear", "llama.rope.scaling.attn_factor");
    for nothing in [
        vec![],
        vec![(kind, text("none")), (factor, Entry::F32(4.0))],
        // llama.cpp writes this for a model without a scaling.
        vec![(kind, text("linear"))],
        vec![(kind, text("linear")), (factor, Entry::F32(0.0)), (attention, Entry::F32(1.0))],
    ] {
        assert_eq!(scaling(&nothing), RopeScaling::None);
    }
    for linear in [
        vec![(factor, Entry::F32(4.0))],
        vec![(old, Entry::F32(4.0))],
        vec![(kind, text("linear")), (old, Entry::F32(4.0))],
        vec![(factor, Entry::F32(4.0)), (old, Entry::F32(2.0))],
    ] {
        assert_eq!(scaling(&linear), RopeScaling::Linear { factor: 4.0 });
    }
    let original = ("llama.rope.scaling.original_context_length", Entry::U32(32));
    let yarn = |more: Vec<(&'static str, Entry)>| {
        let mut keys = vec![(kind, text("yarn")), (factor, Entry::F32(4.0)), original.clone()];
        keys.extend(more);
        match scaling(&keys) {
            RopeScaling::Yarn { factor, attention_factor, beta_fast, beta_slow, .. } => {
                (factor, attention_factor, beta_fast, beta_slow)
            }
            other => panic!("{other:?}"),
        }
    };
    let own = 0.1 * 4_f64.ln() + 1.0;
    assert_eq!(yarn(vec![]), (4.0, own, 32.0, 1.0));
    assert_eq!(yarn(vec![(attention, Entry::F32(1.5))]), (4.0, 1.5 * own, 32.0, 1.0));
    let betas = [("fast", 16.0), ("slow", 2.0)];
    let keys = ["llama.rope.scaling.yarn_beta_fast", "llama.rope.scaling.yarn_beta_slow"];
    let betas = keys.into_iter().zip(betas).map(|(key, (_, beta))| (key, Entry::F32(beta)));
    assert_eq!(yarn(betas.collect()), (4.0, own, 16.0, 2.0));
}

#[test]
fn scalings_that_are_not_read_name_their_key() {
    for key in ["attn_factor", "yarn_ext_factor", "yarn_attn_factor"] {
        let name = format!("llama.rope.scaling.{key}");
        let refusal = load(&with_keys(&[(&name, Entry::F32(0.5))])).unwrap_err().to_string();
        assert!(refusal.contains(&format!("its {name} is 0.5")), "{refusal}");
        assert!(refusal.contains("Hugging Face checkpoint"), "{refusal}");
    }
}

#[test]
fn a_part_of_a_split_model_says_how_to_join_the_parts() {
    let keys = [("split.count", Entry::U16(3)), ("split.no", Entry::U16(1))];
    let refusal = load(&with_keys(&keys)).unwrap_err().to_string();
    assert!(refusal.contains("is part 2 of a model that is split into 3 files"), "{refusal}");
    assert!(refusal.contains("llama-gguf-split --merge"), "{refusal}");
    load(&with_keys(&[("split.count", Entry::U16(1))])).unwrap();
}

#[test]
fn a_tensor_of_an_unknown_type_is_named_with_its_type() {
    let whole = fs::read(fixture("llama.gguf")).unwrap();
    let name = b"blk.1.ffn_up.weight";
    let at = whole.windows(name.len()).position(|bytes| bytes == name).unwrap() + name.len();
    // The number of dimensions and two of them come between name and type.
    let place = at + 4 + 16;
    for (number, kind) in [(20, "IQ4_NL"), (39, "MXFP4"), (23, "IQ4_XS"), (34, "TQ1_0")] {
        let mut bytes = whole.clone();
        bytes[place..place + 4].copy_from_slice(&u32::to_le_bytes(number));
        let refusal = load(&bytes).unwrap_err().to_string();
        let expected = format!("is {kind}; read are F32, F16, BF16, Q4_0");
        assert!(
            refusal.contains("blk.1.ffn_up.weight of ") && refusal.contains(&expected),
            "{refusal}"
        );
        assert!(!refusal.contains("no GGUF file"), "{refusal}");
    }
}

#[test]
fn layers_beyond_the_number_that_a_file_names_are_one_problem() {
    let refusal =
        load(&with_keys(&[("llama.block_count", Entry::U32(1))])).unwrap_err().to_string();
    let expected = "the layers blk.1 to blk.1 are beyond the 1 of its block_count";
    assert!(refusal.ends_with(expected) && !refusal.contains('\n'), "{refusal}");
}
