mod properties;

use serde::{Deserialize, Serialize};

pub(crate) use properties::{Activation, NormPlaces, QueryKeyNorm, RopeKind, Scales};

/// A family of decoders, with the options in which its members differ.
///
/// All have `RMSNorm`, rotary position embedding, causal grouped-query attention and a gated feed-forward half. The
/// table of what else they compute is in `architecture/properties.rs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Mistral: Llama without biases, with a sliding window in every layer or in none. Source: *Mistral 7B*, section 2;
    /// `modeling_mistral.py` of transformers.
    Mistral,
    /// The text model of Gemma 3: norms before and after each half layer, gains stored as their difference to 1, scaled
    /// embeddings, `GeLU` gates, QK-norm, and rotary frequencies of their own in layers with a sliding window. Source:
    /// *Gemma 3 Technical Report*, section 2; `modeling_gemma3.py` of transformers.
    Gemma3 {
        /// Whether queries, keys, values and the attention's output have biases.
        attention_bias: bool,
        /// Attention scores are divided by the root of this number.
        query_pre_attn_scalar: f64,
        /// Base of the rotary frequencies in layers with a sliding window.
        local_rope_theta: f64,
    },
    /// `SmolLM3`: Llama in which some layers have no position embedding. Source: `modeling_smollm3.py` of transformers.
    SmolLm3 {
        /// Whether queries, keys, values and the attention's output have biases.
        attention_bias: bool,
        /// Whether the three matrices of the feed-forward half have biases.
        mlp_bias: bool,
        /// The layers without rotary position embedding, counted from 0.
        unrotated_layers: Vec<usize>,
    },
    /// Granite 3: Llama with four multipliers. Source: `modeling_granite.py` of transformers.
    Granite {
        /// Whether queries, keys, values and the attention's output have biases.
        attention_bias: bool,
        /// Whether the three matrices of the feed-forward half have biases.
        mlp_bias: bool,
        /// The multipliers.
        multipliers: Multipliers,
    },
    /// `OLMo` 2: norms after each half layer instead of before, and QK-norm over all heads together. Source: *2 `OLMo` 2
    /// Furious*, section 2; `modeling_olmo2.py` of transformers.
    Olmo2 {
        /// Whether queries, keys, values and the attention's output have biases.
        attention_bias: bool,
    },
    /// Phi-3 and Phi-4: queries, keys and values are one matrix, gate and up another. Source: *Phi-3 Technical Report*,
    /// section 2; `modeling_phi3.py` of transformers.
    Phi3 {
        /// The share of each head that rotary position embedding rotates.
        partial_rotary_factor: f64,
    },
    /// Qwen2 with experts: one more expert serves every token, weighted by a gate of its own. Source: *Qwen2 Technical
    /// Report*, section 2.2.2; `modeling_qwen2_moe.py` of transformers.
    Qwen2Moe {
        /// Whether queries, keys and values have biases.
        qkv_bias: bool,
        /// The experts, and the layers that have them.
        experts: Experts,
        /// Width of the expert that serves every token.
        shared_size: usize,
    },
    /// Mixtral: Mistral with experts in every layer. Source: *Mixtral of Experts*, section 2; `modeling_mixtral.py` of
    /// transformers.
    Mixtral {
        /// The experts.
        experts: Experts,
    },
}

/// The multipliers of Granite, which are 1 in other families.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Multipliers {
    /// The factor of embeddings.
    pub embedding: f64,
    /// The factor of attention scores, instead of one over the root of a head's width.
    pub attention: f64,
    /// The factor of each half layer before it is added to the residual stream.
    pub residual: f64,
    /// Logits are divided by this number.
    pub logits: f64,
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

impl Architecture {
    /// Returns the family's name in `config.json`.
    #[must_use]
    pub fn model_type(&self) -> &'static str {
        self.properties().model_type
    }

    /// Returns the experts, if the family has them.
    pub(crate) fn experts(&self) -> Option<&Experts> {
        match self {
            Self::Qwen3Moe { experts, .. }
            | Self::Qwen2Moe { experts, .. }
            | Self::Mixtral { experts } => Some(experts),
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

    /// Returns the width of the expert that serves every token, if there is one.
    pub(crate) fn shared_size(&self) -> Option<usize> {
        match self {
            Self::Qwen2Moe { shared_size, .. } => Some(*shared_size),
            _ => None,
        }
    }
}
