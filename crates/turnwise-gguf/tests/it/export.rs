use std::io::Cursor;

use candle_core::Device;
use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use turnwise_candle::{Architecture, Decoder, DecoderConfig, Experts, RopeScaling, SlidingWindow};
use turnwise_gguf::{GgufError, GgufModel, Quantization, gguf_bytes, save_gguf};
use turnwise_rollout::Meter;

use crate::support::{families, fixture, peaked, small, temporary, tokens};

fn content(bytes: &[u8]) -> Content {
    Content::read(&mut Cursor::new(bytes)).unwrap()
}

fn tensor(bytes: &[u8], name: &str) -> Vec<f32> {
    let tensor = content(bytes).tensor(&mut Cursor::new(bytes), name, &Device::Cpu).unwrap();
    tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn checkpoint(model: &Decoder, wanted: &str) -> Vec<f32> {
    let mut found = Vec::new();
    let visit = |name: &str, _: &[usize], values: &[f32]| {
        if name == wanted {
            found = values.to_vec();
        }
        Ok::<(), GgufError>(())
    };
    model.for_each_tensor(visit).unwrap();
    found
}

fn unsupported(config: DecoderConfig) -> String {
    let model = Decoder::random(config, 1).unwrap();
    match gguf_bytes(&model, Quantization::F32) {
        Err(GgufError::Unsupported(reason)) => reason,
        other => panic!("{:?}", other.map(|bytes| bytes.len())),
    }
}

#[test]
fn a_file_has_the_keys_and_names_that_readers_look_for() {
    for architecture in families() {
        let model = Decoder::random(small(architecture), 1).unwrap();
        let bytes = gguf_bytes(&model, Quantization::Q8_0).unwrap();
        let content = content(&bytes);
        let key = |key: &str| content.metadata.get(key).unwrap_or_else(|| panic!("{key}"));
        let name = key("general.architecture").to_string().unwrap();
        assert!(matches!(key("general.file_type"), Value::U32(7)));
        assert!(matches!(key("general.dtype"), Value::U32(0)));
        assert!(matches!(key("tokenizer.ggml.model"), Value::String(none) if none == "none"));
        let sizes = [
            ("block_count", 2),
            ("context_length", 160),
            ("embedding_length", 64),
            ("feed_forward_length", 192),
            ("attention.head_count", 4),
            ("attention.head_count_kv", 2),
            ("attention.key_length", 16),
            ("attention.value_length", 16),
            ("rope.dimension_count", 16),
            ("vocab_size", 97),
        ];
        for (size, expected) in sizes {
            assert_eq!(key(&format!("{name}.{size}")).to_u32().unwrap(), expected, "{size}");
        }
        assert_eq!(key(&format!("{name}.rope.freq_base")).to_f32().unwrap(), 10_000.0);
        let shape = |name: &str| content.tensor_infos[name].shape.dims().to_vec();
        assert_eq!(shape("token_embd.weight"), [97, 64]);
        assert_eq!(shape("output.weight"), [97, 64]);
        assert_eq!(shape("blk.1.ffn_down.weight"), [64, 192]);
        assert_eq!(shape("blk.0.attn_k.weight"), [32, 64]);
    }
}

#[test]
fn weights_in_f32_are_those_of_the_checkpoint() {
    let model = fixture("qwen3_untied");
    let bytes = gguf_bytes(&model, Quantization::F32).unwrap();
    let names = [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("lm_head.weight", "output.weight"),
        ("model.layers.1.self_attn.q_norm.weight", "blk.1.attn_q_norm.weight"),
        ("model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight"),
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
    ];
    for (ours, theirs) in names {
        assert_eq!(tensor(&bytes, theirs), checkpoint(&model, ours), "{ours}");
    }
}

#[test]
fn a_matrix_whose_width_no_block_fits_has_a_type_that_does() {
    // Widths of 64, 192 and 300.
    let config = DecoderConfig { intermediate_size: 300, ..small(Architecture::default()) };
    let model = Decoder::random(config, 1).unwrap();
    let kind = |quantization, name: &str| {
        content(&gguf_bytes(&model, quantization).unwrap()).tensor_infos[name].ggml_dtype
    };
    assert_eq!(kind(Quantization::Q4K, "blk.0.attn_q.weight"), GgmlDType::Q5_0);
    assert_eq!(kind(Quantization::Q6K, "blk.0.attn_q.weight"), GgmlDType::Q8_0);
    assert_eq!(kind(Quantization::Q8_0, "blk.0.attn_q.weight"), GgmlDType::Q8_0);
    assert_eq!(kind(Quantization::Q4K, "blk.0.ffn_down.weight"), GgmlDType::F16);
    assert_eq!(kind(Quantization::Q5_1, "blk.0.ffn_down.weight"), GgmlDType::F16);
    assert_eq!(kind(Quantization::Q8_0, "blk.0.attn_norm.weight"), GgmlDType::F32);
    // An odd number of blocks, which not every kernel accepts.
    let odd = DecoderConfig { hidden_size: 96, ..small(Architecture::default()) };
    for model in [model, Decoder::random(odd, 1).unwrap()] {
        for quantization in Quantization::ALL {
            let mut model = GgufModel::new(&model, quantization).unwrap();
            assert!(model.score(&tokens(1, 20, 97)).unwrap().iter().all(|x| x.is_finite()));
        }
    }
}

#[test]
fn a_file_that_is_read_back_computes_the_same() {
    let (_directory, path) = temporary();
    for architecture in families() {
        let model = peaked(small(architecture), 2, 20.0);
        for quantization in [Quantization::F16, Quantization::Q4_0] {
            save_gguf(&model, &path, quantization).unwrap();
            let ids = tokens(4, 20, 97);
            let read = GgufModel::from_file(&path).unwrap().logits(&ids).unwrap();
            let kept = GgufModel::new(&model, quantization).unwrap().logits(&ids).unwrap();
            assert_eq!(read, kept);
        }
    }
    let left: Vec<_> = path.parent().unwrap().read_dir().unwrap().collect();
    assert_eq!(left.len(), 1, "nothing half-written stays behind");
}

/// A file of another program.
#[test]
fn a_file_without_a_precision_of_its_positions_has_them_in_f32() {
    let trained = peaked(small(Architecture::default()), 1, 20.0);
    let bytes = gguf_bytes(&trained, Quantization::F32).unwrap();
    let content = content(&bytes);
    let read = |name: &String| content.tensor(&mut Cursor::new(&bytes), name, &Device::Cpu);
    let tensors: Vec<(&String, QTensor)> =
        content.tensor_infos.keys().map(|name| (name, read(name).unwrap())).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let metadata = content.metadata.iter().filter(|(key, _)| *key != "general.dtype");
    let metadata: Vec<_> = metadata.map(|(key, value)| (key.as_str(), value)).collect();
    let mut without = Cursor::new(Vec::new());
    gguf_file::write(&mut without, &metadata, &tensors).unwrap();
    let ids = tokens(4, 100, 97);
    let mut foreign = GgufModel::from_bytes(without.into_inner()).unwrap();
    let mut own = GgufModel::from_bytes(bytes.clone()).unwrap();
    assert_eq!(foreign.logits(&ids).unwrap(), own.logits(&ids).unwrap());
}

fn mixture(sparse_step: usize, renormalize: bool) -> DecoderConfig {
    let experts = Experts {
        n_experts: 4,
        n_chosen: 2,
        intermediate_size: 32,
        renormalize,
        sparse_step,
        dense_layers: Vec::new(),
    };
    small(Architecture::Qwen3Moe { attention_bias: false, experts })
}

#[test]
fn experts_are_one_tensor_in_the_file_and_are_not_run() {
    let model = Decoder::random(mixture(1, true), 3).unwrap();
    let bytes = gguf_bytes(&model, Quantization::F32).unwrap();
    let content = content(&bytes);
    assert_eq!(content.metadata["qwen3moe.expert_used_count"].to_u32().unwrap(), 2);
    let dims = content.tensor_infos["blk.1.ffn_down_exps.weight"].shape.dims();
    assert_eq!(dims, [4, 64, 32]);
    let stacked = tensor(&bytes, "blk.1.ffn_down_exps.weight");
    for expert in 0..4 {
        let name = format!("model.layers.1.mlp.experts.{expert}.down_proj.weight");
        assert_eq!(stacked[expert * 64 * 32..][..64 * 32], checkpoint(&model, &name)[..]);
    }
    let quantized = gguf_bytes(&model, Quantization::Q8_0).unwrap();
    let kind = |name: &str| self::content(&quantized).tensor_infos[name].ggml_dtype;
    assert_eq!(kind("blk.0.ffn_gate_inp.weight"), GgmlDType::F32);
    assert_eq!(kind("blk.0.ffn_gate_exps.weight"), GgmlDType::Q8_0);
    assert!(matches!(GgufModel::from_bytes(bytes), Err(GgufError::Unsupported(_))));
}

#[test]
fn the_scaling_of_llama_3_is_a_tensor_of_factors_and_is_not_run() {
    let model = fixture("llama_rope_llama3");
    let bytes = gguf_bytes(&model, Quantization::F32).unwrap();
    let factors = tensor(&bytes, "rope_freqs.weight");
    assert_eq!(factors.len(), model.config().head_dim / 2);
    assert_eq!(factors.first(), Some(&1.0), "short waves are kept");
    assert_eq!(factors.last(), Some(&8.0), "long ones are divided by the factor");
    assert!(factors.is_sorted());
    let refused = GgufModel::new(&model, Quantization::F32).unwrap_err().to_string();
    assert!(refused.contains("scaled positions"), "{refused}");
}

#[test]
fn what_a_file_cannot_say_is_refused() {
    let biased = small(Architecture::Qwen3 { attention_bias: true });
    assert!(unsupported(biased).contains("biases"));
    assert!(unsupported(mixture(2, true)).contains("every layer"));
    assert!(unsupported(mixture(1, false)).contains("divided by their sum"));
    assert!(unsupported(small(Architecture::Mistral)).contains("only Llama, Qwen2, Qwen3"));
    let sliding_window = Some(SlidingWindow { length: 8, layers: vec![0] });
    let windowed = DecoderConfig { sliding_window, ..small(Architecture::Qwen2) };
    assert!(unsupported(windowed).contains("sliding window"));
    let yarn = |attention_factor| RopeScaling::Yarn {
        factor: 4.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor,
        truncate: true,
        original_max_positions: 64,
    };
    let scaled = |rope_scaling| DecoderConfig { rope_scaling, ..small(Architecture::default()) };
    assert!(unsupported(scaled(yarn(1.0))).contains("YaRN"));
    let standard = Decoder::random(scaled(yarn(0.1 * 4.0_f64.ln() + 1.0)), 1).unwrap();
    let content = content(&gguf_bytes(&standard, Quantization::F32).unwrap());
    assert_eq!(content.metadata["qwen3.rope.scaling.factor"].to_f32().unwrap(), 4.0);
}

#[test]
fn what_the_engine_would_read_past_is_refused() {
    let refused = |config: DecoderConfig| {
        let model = Decoder::random(config, 1).unwrap();
        match GgufModel::new(&model, Quantization::F32) {
            Err(GgufError::Unsupported(reason)) => reason,
            other => panic!("{other:?}"),
        }
    };
    let llama = Architecture::Llama { attention_bias: true, mlp_bias: false };
    assert!(refused(small(llama)).contains("attn_"));
    let llama = Architecture::Llama { attention_bias: false, mlp_bias: true };
    assert!(refused(small(llama)).contains("ffn_"));
    let linear = RopeScaling::Linear { factor: 2.0 };
    let scaled = DecoderConfig { rope_scaling: linear, ..small(Architecture::Qwen2) };
    assert!(refused(scaled).contains("scaled positions"));
    let wider = DecoderConfig { head_dim: 18, ..small(Architecture::Qwen2) };
    assert!(refused(wider).contains("4 heads of 18"));
    let long = DecoderConfig { max_positions: 9000, ..small(families()[2].clone()) };
    let long = GgufModel::new(&Decoder::random(long, 1).unwrap(), Quantization::F32).unwrap();
    assert_eq!(long.max_positions(), 4096);
}

#[test]
fn what_is_no_gguf_is_malformed() {
    for bytes in [Vec::new(), b"GGUF".to_vec(), vec![7; 300]] {
        assert!(matches!(GgufModel::from_bytes(bytes), Err(GgufError::Malformed(_))));
    }
    let model = Decoder::random(small(Architecture::default()), 1).unwrap();
    let mut cut = gguf_bytes(&model, Quantization::F32).unwrap();
    cut.truncate(cut.len() / 2);
    assert!(matches!(GgufModel::from_bytes(cut), Err(GgufError::Malformed(_))));
    let (_directory, path) = temporary();
    assert!(matches!(GgufModel::from_file(&path), Err(GgufError::Read { .. })));
    let nowhere = path.join("below/a/file.gguf");
    let written = save_gguf(&model, &nowhere, Quantization::F32);
    assert!(matches!(written, Err(GgufError::Write { .. })));
}

#[test]
fn tokens_that_cannot_be_computed_are_refused() {
    let model = Decoder::random(small(Architecture::default()), 1).unwrap();
    let mut model = GgufModel::new(&model, Quantization::F32).unwrap();
    assert_eq!(model.score(&[]).unwrap(), [0.0; 0]);
    assert_eq!(model.score(&[3]).unwrap(), [0.0; 0]);
    for ids in [vec![], vec![0, 97], vec![1; 161]] {
        assert!(matches!(model.logits(&ids), Err(GgufError::BadTokens(_))));
        assert!(matches!(model.logits_together(&ids), Err(GgufError::BadTokens(_))));
    }
    assert!(model.score(&vec![1; 160]).is_ok());
}

/// Overwrites a weight of a model's checkpoint.
fn with_weight(name: &str, value: f32) -> Decoder {
    let (directory, _) = temporary();
    let model = Decoder::random(small(Architecture::Qwen2), 1).unwrap();
    model.save(directory.path()).unwrap();
    let path = directory.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let offset = json[name]["data_offsets"][0].as_u64().unwrap();
    let start = 8 + header + usize::try_from(offset).unwrap();
    bytes[start..start + 4].copy_from_slice(&value.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    Decoder::from_directory(directory.path()).unwrap()
}

#[test]
fn a_weight_that_a_type_cannot_hold_is_refused_by_name() {
    let model = with_weight("model.layers.1.mlp.down_proj.weight", 1e8);
    for quantization in [Quantization::F16, Quantization::Q8_0, Quantization::Q4_0] {
        let error = gguf_bytes(&model, quantization).unwrap_err();
        let GgufError::NotFinite(said) = error else { panic!("{error}") };
        assert!(said.contains("blk.1.ffn_down.weight becomes inf"), "{said}");
        let model = GgufModel::new(&model, quantization);
        assert!(matches!(model, Err(GgufError::NotFinite(_))));
    }
    assert!(gguf_bytes(&model, Quantization::F32).is_ok());
}

#[test]
fn a_file_with_nan_is_refused_by_name() {
    let model = with_weight("model.norm.weight", 1234.5);
    let mut bytes = gguf_bytes(&model, Quantization::F32).unwrap();
    let place = bytes.windows(4).position(|four| four == 1234.5_f32.to_le_bytes()).unwrap();
    bytes[place..place + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let error = GgufModel::from_bytes(bytes).unwrap_err();
    let GgufError::NotFinite(said) = error else { panic!("{error}") };
    assert!(said.contains("output_norm.weight") && said.contains("NaN at number 0"), "{said}");
}

#[test]
fn an_exported_model_is_read_again_with_the_same_weights() {
    for architecture in families() {
        let model = Decoder::random(small(architecture), 1).unwrap();
        let (_directory, path) = temporary();
        save_gguf(&model, &path, Quantization::F32).unwrap();
        let again = Decoder::load(&path, None, &Meter::default()).unwrap();
        assert_eq!(again.config(), model.config());
        let ids = vec![vec![3, 1, 4, 1, 5]];
        assert_eq!(again.score(&ids).unwrap(), model.score(&ids).unwrap());
    }
}
