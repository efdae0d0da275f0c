//! Defects of `candle-transformers` 0.11 that this crate works around. If a test fails, its workaround can be removed.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_qwen3::ModelWeights;
use turnwise_candle::Architecture;
use turnwise_gguf::{GgufModel, Quantization, gguf_bytes};

use crate::support::{apart, peaked, small, tokens};

fn bytes() -> Vec<u8> {
    let trained = peaked(small(Architecture::default()), 1, 20.0);
    gguf_bytes(&trained, Quantization::F32).unwrap()
}

fn theirs() -> ModelWeights {
    let mut reader = Cursor::new(bytes());
    let content = Content::read(&mut reader).unwrap();
    ModelWeights::from_gguf(content, &mut reader, &Device::Cpu).unwrap()
}

fn run(model: &mut ModelWeights, ids: &[u32], position: usize) -> Vec<f32> {
    let input = Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu).unwrap();
    model.forward(&input, position).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Wrong, because the token that was computed alone is in another cache than the one that the last pass reads.
#[test]
fn several_tokens_in_one_pass_after_a_single_one_are_wrong_without_an_error() {
    let ids = tokens(1, 30, 97);
    let right = GgufModel::from_bytes(bytes()).unwrap().logits(&ids).unwrap();
    let (mut model, mut other) = (theirs(), theirs());
    run(&mut model, &ids[..20], 0);
    let passes_alone = run(&mut model, &ids[20..], 20);
    assert!(apart(&right, &passes_alone).1 < 1e-3, "two passes with nothing in between are right");
    run(&mut other, &ids[..20], 0);
    run(&mut other, &ids[20..21], 20);
    let after_a_single_one = run(&mut other, &ids[21..], 21);
    assert!(apart(&right, &after_a_single_one).1 > 0.1);
}

/// Wrong, because on a processor the cache has room for one sequence only.
#[test]
fn a_batch_of_two_panics() {
    let mut model = theirs();
    let input = Tensor::from_slice(&[1_u32, 2, 3, 4], (2, 2), &Device::Cpu).unwrap();
    let forward = AssertUnwindSafe(|| model.forward(&input, 0).is_ok());
    assert!(catch_unwind(forward).is_err());
}

/// Wrong, because weights in F32 do not select RoPE in F32.
#[test]
fn without_a_key_of_its_own_positions_are_turned_in_half_precision() {
    let mut reader = Cursor::new(bytes());
    let mut content = Content::read(&mut reader).unwrap();
    content.metadata.remove("general.dtype").unwrap();
    let mut model = ModelWeights::from_gguf(content, &mut reader, &Device::Cpu).unwrap();
    let ids = tokens(1, 120, 97);
    let right = GgufModel::from_bytes(bytes()).unwrap().logits_together(&ids).unwrap();
    assert_eq!(run(&mut theirs(), &ids, 0), right);
    assert!(apart(&right, &run(&mut model, &ids, 0)).1 > 1e-3);
}
