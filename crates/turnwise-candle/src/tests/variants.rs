//! Models of every family with sizes that do not divide each other.

use turnwise_rollout::uniform_at;

use crate::layout::ParameterRole;
use crate::{
    Architecture, Decoder, DecoderConfig, Experts, Multipliers, RopeScaling, SlidingWindow,
};

pub(super) fn experts() -> Experts {
    Experts {
        n_experts: 5,
        n_chosen: 3,
        intermediate_size: 11,
        renormalize: true,
        sparse_step: 1,
        dense_layers: vec![1],
    }
}

/// Returns sizes that do not divide each other.
fn sizes() -> DecoderConfig {
    DecoderConfig {
        hidden_size: 21,
        intermediate_size: 37,
        n_heads: 6,
        n_kv_heads: 2,
        head_dim: 10,
        n_layers: 3,
        ..DecoderConfig::small(53)
    }
}

fn window(length: usize, layers: &[usize]) -> SlidingWindow {
    SlidingWindow { length, layers: layers.to_vec() }
}

/// Returns models of families that differ from Llama and Qwen in more than biases, QK-norm and experts.
fn others() -> Vec<DecoderConfig> {
    let of = |architecture| DecoderConfig { architecture, ..sizes() };
    let multipliers = Multipliers { embedding: 3.0, attention: 0.2, residual: 0.4, logits: 2.5 };
    let long_rope = RopeScaling::LongRope {
        short_factor: vec![1.0, 1.2, 1.5],
        long_factor: vec![1.0, 3.0, 9.0],
        attention_factor: 1.1,
        original_max_positions: 256,
    };
    let all = Experts { intermediate_size: 37, dense_layers: vec![], ..experts() };
    vec![
        DecoderConfig { sliding_window: Some(window(3, &[0, 1, 2])), ..of(Architecture::Mistral) },
        DecoderConfig {
            sliding_window: Some(window(4, &[0, 2])),
            rope_scaling: RopeScaling::Linear { factor: 8.0 },
            ..of(Architecture::Gemma3 {
                attention_bias: false,
                query_pre_attn_scalar: 7.0,
                local_rope_theta: 300.0,
            })
        },
        // Without position embedding, a bias of all keys changes nothing.
        of(Architecture::SmolLm3 {
            attention_bias: false,
            mlp_bias: true,
            unrotated_layers: vec![1],
        }),
        of(Architecture::Granite { attention_bias: true, mlp_bias: false, multipliers }),
        of(Architecture::Olmo2 { attention_bias: true }),
        DecoderConfig {
            sliding_window: Some(window(17, &[0, 1, 2])),
            rope_scaling: long_rope,
            ..of(Architecture::Phi3 { partial_rotary_factor: 0.6 })
        },
        DecoderConfig {
            sliding_window: Some(window(9, &[1])),
            ..of(Architecture::Qwen2Moe {
                qkv_bias: true,
                experts: Experts { renormalize: false, ..experts() },
                shared_size: 13,
            })
        },
        of(Architecture::Mixtral { experts: all }),
        DecoderConfig {
            sliding_window: Some(window(40, &[0])),
            rope_scaling: RopeScaling::Dynamic { factor: 2.0 },
            ..of(Architecture::Qwen3 { attention_bias: false })
        },
    ]
}

pub(super) fn variants() -> Vec<DecoderConfig> {
    let config = sizes();
    let of = |architecture| DecoderConfig { architecture, ..config.clone() };
    let lone = Experts { n_chosen: 1, renormalize: false, sparse_step: 2, ..experts() };
    let llama3 = RopeScaling::Llama3 {
        factor: 4.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 16,
    };
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        beta_fast: 8.0,
        beta_slow: 1.0,
        attention_factor: 1.2,
        truncate: true,
        original_max_positions: 32,
    };
    let mut variants = vec![
        DecoderConfig {
            rope_scaling: llama3,
            ..of(Architecture::Llama { attention_bias: true, mlp_bias: true })
        },
        DecoderConfig {
            tie_word_embeddings: false,
            ..of(Architecture::Llama { attention_bias: false, mlp_bias: false })
        },
        DecoderConfig { rope_scaling: yarn, ..of(Architecture::Qwen2) },
        of(Architecture::Qwen3 { attention_bias: true }),
        of(Architecture::Qwen3Moe { attention_bias: false, experts: experts() }),
        DecoderConfig {
            rope_scaling: RopeScaling::Linear { factor: 3.0 },
            tie_word_embeddings: false,
            ..of(Architecture::Qwen3Moe {
                attention_bias: true,
                experts: Experts { dense_layers: vec![], ..lone },
            })
        },
    ];
    variants.extend(others());
    variants
}

/// Returns a random model with random norms, biases and embedding too, so that omitting one of them shows.
pub(super) fn perturbed(config: DecoderConfig, seed: u64) -> Decoder {
    let model = Decoder::random(config, seed).unwrap();
    let mut values = model.values().unwrap();
    let mut drawn = 0;
    for (parameter, values) in model.parameters().iter().zip(&mut values) {
        let (keep, add) = match parameter.spec.role {
            ParameterRole::Norm | ParameterRole::Bias => (1.0, 0.8),
            ParameterRole::Embedding | ParameterRole::Head => (20.0, 0.0),
            ParameterRole::Matrix
            | ParameterRole::Residual
            | ParameterRole::AdapterDown
            | ParameterRole::AdapterUp => (1.0, 0.0),
        };
        for value in values {
            drawn += 1;
            *value = *value * keep + add * (uniform_at(seed + 1, drawn) as f32 - 0.5);
        }
    }
    model.set_values(values).unwrap();
    model
}
