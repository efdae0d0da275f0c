//! What the members of each family compute, as data that the layout and the forward pass read.

use super::{Architecture, Multipliers};

/// The properties of a family.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Properties {
    /// The family's name in `config.json`.
    pub(crate) model_type: &'static str,
    /// The family's class in transformers.
    pub(crate) class: &'static str,
    pub(crate) biases: Biases,
    pub(crate) query_key_norm: QueryKeyNorm,
    pub(crate) norms: NormPlaces,
    /// Added to the stored gains of all norms.
    pub(crate) gain_offset: f32,
    pub(crate) activation: Activation,
    /// Whether queries, keys and values are one matrix, and gate and up another.
    pub(crate) is_joined: bool,
    /// The name of the module with a layer's experts, and those of gate, up and down in it.
    pub(crate) experts: (&'static str, [&'static str; 3]),
}

/// The linear maps of an architecture that have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Biases {
    /// Queries, keys and values.
    pub(crate) inputs: bool,
    /// The output of attention.
    pub(crate) output: bool,
    /// Gate, up and down.
    pub(crate) mlp: bool,
}

/// The numbers that QK-norm divides by one root mean square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueryKeyNorm {
    /// There is no QK-norm.
    Absent,
    /// Those of each head.
    Heads,
    /// Those of all query heads, and those of all key heads.
    Whole,
}

/// The norms of each half layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NormPlaces {
    /// Of its input.
    Before,
    /// Of its output, before it is added to the residual stream.
    After,
    /// Of both.
    Both,
}

/// The function of the gate of a feed-forward half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    /// `x sigmoid(x)`.
    Silu,
    /// The approximation of `GeLU` by a hyperbolic tangent.
    GeluTanh,
}

/// The rotary position embedding of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RopeKind {
    /// That of the configuration.
    Global,
    /// That of layers with a sliding window.
    Local,
    /// There is no rotary position embedding.
    Absent,
}

/// Factors of a forward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scales {
    /// Of embeddings.
    pub(crate) embedding: f32,
    /// Of attention scores.
    pub(crate) scores: f32,
    /// Of each half layer before it is added to the residual stream.
    pub(crate) residual: f32,
    /// Of logits.
    pub(crate) logits: f32,
}

const NO_BIASES: Biases = Biases { inputs: false, output: false, mlp: false };

/// The properties of Llama without biases.
const LLAMA: Properties = Properties {
    model_type: "llama",
    class: "LlamaForCausalLM",
    biases: NO_BIASES,
    query_key_norm: QueryKeyNorm::Absent,
    norms: NormPlaces::Before,
    gain_offset: 0.0,
    activation: Activation::Silu,
    is_joined: false,
    experts: ("mlp", ["gate_proj", "up_proj", "down_proj"]),
};

impl Architecture {
    /// The names of the families in `config.json`.
    pub(crate) const MODEL_TYPES: &[&str] = &[
        "llama",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "mistral",
        "gemma3_text",
        "gemma3",
        "smollm3",
        "granite",
        "olmo2",
        "phi3",
        "qwen2_moe",
        "mixtral",
    ];

    /// Returns what members of the family compute.
    pub(crate) fn properties(&self) -> Properties {
        let biased =
            |attention: bool, mlp: bool| Biases { inputs: attention, output: attention, mlp };
        let of = |model_type, class| Properties { model_type, class, ..LLAMA };
        match *self {
            Self::Llama { attention_bias, mlp_bias } => {
                Properties { biases: biased(attention_bias, mlp_bias), ..LLAMA }
            }
            Self::Qwen2 => Properties {
                biases: Biases { inputs: true, ..NO_BIASES },
                ..of("qwen2", "Qwen2ForCausalLM")
            },
            Self::Qwen3 { attention_bias } => Properties {
                biases: biased(attention_bias, false),
                query_key_norm: QueryKeyNorm::Heads,
                ..of("qwen3", "Qwen3ForCausalLM")
            },
            Self::Qwen3Moe { attention_bias, .. } => Properties {
                biases: biased(attention_bias, false),
                query_key_norm: QueryKeyNorm::Heads,
                ..of("qwen3_moe", "Qwen3MoeForCausalLM")
            },
            Self::Mistral => of("mistral", "MistralForCausalLM"),
            Self::Gemma3 { attention_bias, .. } => Properties {
                biases: biased(attention_bias, false),
                query_key_norm: QueryKeyNorm::Heads,
                norms: NormPlaces::Both,
                gain_offset: 1.0,
                activation: Activation::GeluTanh,
                ..of("gemma3_text", "Gemma3ForCausalLM")
            },
            Self::SmolLm3 { attention_bias, mlp_bias, .. } => Properties {
                biases: biased(attention_bias, mlp_bias),
                ..of("smollm3", "SmolLM3ForCausalLM")
            },
            Self::Granite { attention_bias, mlp_bias, .. } => Properties {
                biases: biased(attention_bias, mlp_bias),
                ..of("granite", "GraniteForCausalLM")
            },
            Self::Olmo2 { attention_bias } => Properties {
                biases: biased(attention_bias, false),
                query_key_norm: QueryKeyNorm::Whole,
                norms: NormPlaces::After,
                ..of("olmo2", "Olmo2ForCausalLM")
            },
            Self::Phi3 { .. } => Properties { is_joined: true, ..of("phi3", "Phi3ForCausalLM") },
            Self::Qwen2Moe { qkv_bias, .. } => Properties {
                biases: Biases { inputs: qkv_bias, ..NO_BIASES },
                ..of("qwen2_moe", "Qwen2MoeForCausalLM")
            },
            Self::Mixtral { .. } => Properties {
                experts: ("block_sparse_moe", ["w1", "w3", "w2"]),
                ..of("mixtral", "MixtralForCausalLM")
            },
        }
    }

    /// Returns the factors of a model of these widths.
    pub(crate) fn scales(&self, hidden_size: usize, head_dim: usize) -> Scales {
        let root = |width: f64| (1.0 / width.sqrt()) as f32;
        let plain =
            Scales { embedding: 1.0, scores: root(head_dim as f64), residual: 1.0, logits: 1.0 };
        match *self {
            // transformers rounds the factor to the type that it computes in, which is f32 here.
            Self::Gemma3 { query_pre_attn_scalar, .. } => Scales {
                embedding: (hidden_size as f64).sqrt() as f32,
                scores: root(query_pre_attn_scalar),
                ..plain
            },
            Self::Granite {
                multipliers: Multipliers { embedding, attention, residual, logits },
                ..
            } => Scales {
                embedding: embedding as f32,
                scores: attention as f32,
                residual: residual as f32,
                logits: (1.0 / logits) as f32,
            },
            _ => plain,
        }
    }

    /// Returns the rotary position embedding of a layer.
    pub(crate) fn rope_of(&self, layer: usize, has_window: bool) -> RopeKind {
        match self {
            Self::Gemma3 { .. } if has_window => RopeKind::Local,
            Self::SmolLm3 { unrotated_layers, .. } if unrotated_layers.contains(&layer) => {
                RopeKind::Absent
            }
            _ => RopeKind::Global,
        }
    }

    /// Returns the width of the part of a head that rotates.
    #[expect(
        clippy::cast_sign_loss,
        reason = "the cast saturates at 0, and a validated share is positive"
    )]
    pub(crate) fn rotary_dim(&self, head_dim: usize) -> usize {
        match self {
            Self::Phi3 { partial_rotary_factor } => {
                (head_dim as f64 * partial_rotary_factor) as usize
            }
            _ => head_dim,
        }
    }
}
