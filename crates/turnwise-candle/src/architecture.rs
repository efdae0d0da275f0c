use serde::{Deserialize, Serialize};

/// A family of decoders, with the options in which its members differ.
///
/// All have `RMSNorm` before each half layer, rotary position embedding, causal grouped-query attention and SwiGLU.
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
    /// Qwen3: applies QK-norm before rotary position embedding. Source: *Qwen3 Technical Report*, section 2;
    /// `modeling_qwen3.py` of transformers.
    Qwen3 {
        /// Whether queries, keys, values and the attention's output have biases.
        attention_bias: bool,
    },
    /// Qwen3 with experts. Source: *Qwen3 Technical Report*, section 2; `modeling_qwen3_moe.py` of transformers.
    Qwen3Moe {
        /// Whether queries, keys, values and the attention's output have biases.
        attention_bias: bool,
        /// The experts, and the layers that have them.
        experts: Experts,
    },
}

impl Default for Architecture {
    fn default() -> Self {
        Self::Qwen3 { attention_bias: false }
    }
}

/// Mixture-of-experts layers, in which each token uses a few experts (Shazeer et al., *Outrageously large neural
/// networks*, 2017).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experts {
    /// Experts per layer.
    pub n_experts: usize,
    /// Experts per token.
    pub n_chosen: usize,
    /// Width of an expert.
    pub intermediate_size: usize,
    /// Whether the weights of the chosen experts are divided by their sum.
    pub renormalize: bool,
    /// The distance between layers with experts: 1 for every layer, 2 for layers 1, 3 and so on, counted from 0.
    pub sparse_step: usize,
    /// Layers without experts in spite of `sparse_step`, counted from 0.
    pub dense_layers: Vec<usize>,
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

impl Architecture {
    /// The names of the families in `config.json`.
    pub(crate) const MODEL_TYPES: &[&str] = &["llama", "qwen2", "qwen3", "qwen3_moe"];

    /// Returns the family's name in `config.json`.
    #[must_use]
    pub fn model_type(&self) -> &'static str {
        match self {
            Self::Llama { .. } => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 { .. } => "qwen3",
            Self::Qwen3Moe { .. } => "qwen3_moe",
        }
    }

    /// Returns the family's class in transformers.
    pub(crate) fn class(&self) -> &'static str {
        match self {
            Self::Llama { .. } => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 { .. } => "Qwen3ForCausalLM",
            Self::Qwen3Moe { .. } => "Qwen3MoeForCausalLM",
        }
    }

    /// Returns whether the family has QK-norm.
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

    /// Returns the experts, if the family has them.
    pub(crate) fn experts(&self) -> Option<&Experts> {
        match self {
            Self::Qwen3Moe { experts, .. } => Some(experts),
            _ => None,
        }
    }

    /// Returns the experts of a layer; `None` for a dense layer.
    pub(crate) fn experts_in(&self, layer: usize) -> Option<&Experts> {
        self.experts().filter(|experts| {
            (layer + 1).is_multiple_of(experts.sparse_step)
                && !experts.dense_layers.contains(&layer)
        })
    }
}
