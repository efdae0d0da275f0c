//! The trainer's forward pass against one that shares no code with it.

use proptest::prelude::*;
use turnwise_candle::{Architecture, Decoder, DecoderConfig};
use turnwise_gguf::{GgufModel, Quantization};

use crate::support::{ROUNDING, apart, families, fixture, peaked, small, tokens};

/// The reference models whose architecture `candle-transformers` has.
const FIXTURES: [&str; 4] = ["qwen3_tied", "qwen3_untied", "qwen2", "llama"];

fn assert_close(ours: &[f32], theirs: &[f32], what: &str) {
    let (_, largest) = apart(ours, theirs);
    assert!(largest < ROUNDING, "{what}: {largest} nats apart");
}

/// Returns the log-probabilities of a row of logits.
fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - highest).exp()).sum();
    logits.iter().map(|logit| (f64::from(logit - highest) - sum.ln()) as f32).collect()
}

#[test]
fn the_f32_engine_has_the_log_probabilities_of_the_trainer() {
    for name in FIXTURES {
        let trained = fixture(name);
        let vocab_size = trained.config().vocab_size;
        let mut model = GgufModel::new(&trained, Quantization::F32).unwrap();
        assert_eq!(model.vocab_size(), vocab_size);
        assert_eq!(model.max_positions(), trained.config().max_positions);
        for length in [2, 3, 16, 33, 300] {
            let ids = tokens(length, length, vocab_size);
            let ours = trained.score(std::slice::from_ref(&ids)).unwrap().remove(0);
            let theirs = model.score(&ids).unwrap();
            assert_close(&ours, &theirs, &format!("{name}, {length} tokens"));
        }
    }
}

#[test]
fn prompts_in_one_pass_have_the_distribution_of_the_trainer() {
    for name in FIXTURES {
        let trained = fixture(name);
        let mut model = GgufModel::new(&trained, Quantization::F32).unwrap();
        for length in [1, 2, 17, 64, 250] {
            let ids = tokens(length, length, model.vocab_size());
            let ours = log_softmax(trained.logits(&ids).unwrap().last().unwrap());
            let together = log_softmax(&model.logits_together(&ids).unwrap());
            assert_close(&ours, &together, &format!("{name}, {length} tokens together"));
            let apart = log_softmax(&model.logits(&ids).unwrap());
            assert_close(&ours, &apart, &format!("{name}, {length} tokens one by one"));
        }
    }
}

/// The sequence that breaks the models of `candle-transformers` without the workarounds: a prompt, an answer, a second
/// prompt, an answer.
#[test]
fn later_turns_have_the_distribution_of_the_trainer() {
    for name in FIXTURES {
        let trained = fixture(name);
        let mut model = GgufModel::new(&trained, Quantization::F32).unwrap();
        let mut ids = Vec::new();
        for (turn, said) in [12, 1, 30, 2, 7].into_iter().enumerate() {
            ids.extend(tokens(turn as u32, said, model.vocab_size()));
            for _ in 0..4 {
                let theirs = log_softmax(&model.logits(&ids).unwrap());
                let ours = log_softmax(trained.logits(&ids).unwrap().last().unwrap());
                assert_close(&ours, &theirs, &format!("{name}, turn {turn}"));
                let likeliest = (0..theirs.len()).max_by(|a, b| theirs[*a].total_cmp(&theirs[*b]));
                ids.push(likeliest.unwrap() as u32);
            }
        }
    }
}

fn any_config() -> impl Strategy<Value = DecoderConfig> {
    let heads = (1_usize..4, 1_usize..3, 1_usize..10, any::<bool>(), 0_usize..3);
    (heads, 5_usize..200, 1_usize..90, 1_usize..4, 0_usize..80).prop_map(
        |((kv, groups, half, tied, family), vocab_size, intermediate_size, n_layers, extra)| {
            let architecture = families()[family].clone();
            let (n_heads, head_dim) = (kv * groups, 2 * half);
            // The width of a Qwen3 is free; that of the others follows from its heads.
            let free = matches!(architecture, Architecture::Qwen3 { .. });
            DecoderConfig {
                architecture,
                vocab_size,
                hidden_size: if free { 1 + extra } else { n_heads * head_dim },
                intermediate_size,
                n_layers,
                n_heads,
                n_kv_heads: kv,
                head_dim,
                max_positions: 64,
                tie_word_embeddings: tied,
                ..DecoderConfig::small(vocab_size)
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Odd widths, shared keys, tied and untied heads.
    #[test]
    fn both_forward_passes_agree_on_models_of_any_size(
        config in any_config(),
        seed in any::<u64>(),
        n in 2_u32..40,
    ) {
        let ids = tokens(n, n, config.vocab_size);
        let trained = peaked(config, seed, 20.0);
        let ours = trained.score(std::slice::from_ref(&ids)).unwrap().remove(0);
        let theirs = GgufModel::new(&trained, Quantization::F32).unwrap().score(&ids).unwrap();
        let (_, largest) = apart(&ours, &theirs);
        prop_assert!(largest < ROUNDING, "{largest} nats apart");
    }
}

/// Returns a model that is wide enough for blocks of 256.
fn wide() -> Decoder {
    let config = DecoderConfig {
        hidden_size: 256,
        intermediate_size: 512,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 64,
        ..small(Architecture::default())
    };
    peaked(config, 3, 8.0)
}

/// Fewer bits give larger differences, of the order of magnitude that the types are known for.
#[test]
fn rounded_weights_move_log_probabilities_as_far_as_their_bits_let_expect() {
    let trained = wide();
    let ids = tokens(1, 120, 97);
    let ours = trained.score(std::slice::from_ref(&ids)).unwrap().remove(0);
    // The largest mean difference, in nats.
    let bounds = [
        (Quantization::F32, 1e-5),
        (Quantization::F16, 5e-3),
        (Quantization::Bf16, 5e-2),
        (Quantization::Q8_0, 0.1),
        (Quantization::Q6K, 0.2),
        (Quantization::Q5_1, 0.4),
        (Quantization::Q5_0, 0.4),
        (Quantization::Q5K, 0.4),
        (Quantization::Q4_1, 0.8),
        (Quantization::Q4_0, 0.8),
        (Quantization::Q4K, 0.8),
        (Quantization::Q3K, 1.6),
        (Quantization::Q2K, 3.2),
    ];
    let mean = |quantization| {
        let theirs = GgufModel::new(&trained, quantization).unwrap().score(&ids).unwrap();
        apart(&ours, &theirs).0
    };
    let means: Vec<_> = bounds.iter().map(|(one, _)| (*one, mean(*one))).collect();
    for ((quantization, bound), (_, mean)) in bounds.iter().zip(&means) {
        assert!(mean < bound, "{quantization}: {means:?}");
    }
    let mean = |quantization| means.iter().find(|(one, _)| *one == quantization).unwrap().1;
    assert!(mean(Quantization::F32) < mean(Quantization::F16));
    assert!(mean(Quantization::F16) < mean(Quantization::Q8_0));
    assert!(mean(Quantization::Q8_0) < mean(Quantization::Q4K));
    assert!(mean(Quantization::Q4K) < mean(Quantization::Q2K));
}

/// With every content of the cache.
#[test]
fn logits_are_a_function_of_the_tokens_to_the_last_bit() {
    for (architecture, quantization) in families()
        .into_iter()
        .flat_map(|one| [Quantization::F32, Quantization::Q8_0].map(|bits| (one.clone(), bits)))
    {
        let trained = peaked(small(architecture), 5, 20.0);
        let mut model = GgufModel::new(&trained, quantization).unwrap();
        let ids = tokens(2, 40, 97);
        let expected = model.logits(&ids).unwrap();
        for before in [&ids[..1], &ids[..20], &ids[..39], &ids[..], &ids[3..9], &[5]] {
            model.logits(before).unwrap();
            assert_eq!(model.logits(&ids).unwrap(), expected);
            model.score(before).unwrap();
            assert_eq!(model.logits(&ids).unwrap(), expected);
            model.logits_together(before).unwrap();
            assert_eq!(model.logits(&ids).unwrap(), expected);
        }
    }
}
