use serde::{Deserialize, Serialize};

/// Which family of decoders a model belongs to, with what its members differ in.
///
/// Common to all: `RMSNorm` before each half layer, rotary positions, grouped-query attention over the whole past, SwiGLU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Architecture {
    /// Llama 2 and 3. Source: *The Llama 3 Herd of Models*, section 3.2; `modeling_llama.py` of transformers.
    Llama {
        /// Whether queries, keys, values and the attention's output have biases.
        attention_bias: bool,
        /// Whether the three matrices of the feed-forward half have biases.
        mlp_bias: bool,
    },
    /// Qwen2 and Qwen2.5: biases on queries, keys and values, and nowhere else. Source: *Qwen2 Technical Report*, section
    /// 2.2.1; `modeling_qwen2.py` of transformers.
    Qwen2,
    /// Each query and key head is normed before it is turned. Source: *Qwen3 Technical Report*, section 2;
    /// `modeling_qwen3.py` of transformers.
    Qwen3 {
        /// Whether queries, keys, values and the attention's output have biases.
        attention_bias: bool,
    },
    /// Qwen3 with experts. Source: *Qwen3 Technical Report*, section 2; `modeling_qwen3_moe.py` of transformers.
    Qwen3Moe {
        /// Whether queries, keys, values and the attention's output have biases.
        attention_bias: bool,
        /// The experts, and in which layers they are.
        experts: Experts,
    },
}

impl Default for Architecture {
    fn default() -> Self {
        Self::Qwen3 { attention_bias: false }
    }
}

/// Feed-forward halves of which each token uses a few (Shazeer et al., *Outrageously large neural networks*, 2017).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experts {
    /// How many experts a layer has.
    pub n_experts: usize,
    /// How many of them a token uses.
    pub n_chosen: usize,
    /// Width inside an expert.
    pub intermediate_size: usize,
    /// Whether the weights of the chosen experts are divided by their sum.
    pub renormalize: bool,
    /// Every so many layers, the last of them has experts: with 1 every layer, with 2 layers 1, 3, and so on from 0.
    pub sparse_step: usize,
    /// Layers that have none nevertheless, from 0.
    pub dense_layers: Vec<usize>,
}

/// Where an architecture adds a constant vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Biases {
    /// To queries, keys and values.
    pub(crate) inputs: bool,
    /// To the attention's output.
    pub(crate) output: bool,
    /// To gate, up and down.
    pub(crate) mlp: bool,
}

impl Architecture {
    /// The families' names in `config.json`.
    pub(crate) const MODEL_TYPES: &[&str] = &["llama", "qwen2", "qwen3", "qwen3_moe"];

    /// Its name in `config.json`.
    pub(crate) fn model_type(&self) -> &'static str {
        match self {
            Self::Llama { .. } => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 { .. } => "qwen3",
            Self::Qwen3Moe { .. } => "qwen3_moe",
        }
    }

    /// Its class in transformers.
    pub(crate) fn class(&self) -> &'static str {
        match self {
            Self::Llama { .. } => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 { .. } => "Qwen3ForCausalLM",
            Self::Qwen3Moe { .. } => "Qwen3MoeForCausalLM",
        }
    }

    /// Whether query and key heads are normed.
    pub(crate) fn norms_heads(&self) -> bool {
        matches!(self, Self::Qwen3 { .. } | Self::Qwen3Moe { .. })
    }

    pub(crate) fn biases(&self) -> Biases {
        match *self {
            Self::Llama { attention_bias, mlp_bias } => {
                Biases { inputs: attention_bias, output: attention_bias, mlp: mlp_bias }
            }
            Self::Qwen2 => Biases { inputs: true, output: false, mlp: false },
            Self::Qwen3 { attention_bias } | Self::Qwen3Moe { attention_bias, .. } => {
                Biases { inputs: attention_bias, output: attention_bias, mlp: false }
            }
        }
    }

    /// The experts, if the family has them.
    pub(crate) fn experts(&self) -> Option<&Experts> {
        match self {
            Self::Qwen3Moe { experts, .. } => Some(experts),
            _ => None,
        }
    }

    /// The experts of a layer; `None` when its feed-forward half is one for all tokens.
    pub(crate) fn experts_in(&self, layer: usize) -> Option<&Experts> {
        self.experts().filter(|experts| {
            (layer + 1).is_multiple_of(experts.sparse_step)
                && !experts.dense_layers.contains(&layer)
        })
    }
}
