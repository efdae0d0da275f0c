//! Configuration of a model.

mod json;
mod lora;
mod window;

pub(crate) use json::{has_images, text_part, with_dtype};
pub use lora::{LoraSettings, LoraTarget};
use serde::{Deserialize, Serialize};
pub use window::SlidingWindow;

use crate::architecture::Scales;
use crate::{Architecture, Experts, ModelError, Multipliers, RopeScaling};

/// The most feed-forward modules of a plausible model: a list of all tensors is built before it is compared to a file.
const MOST_MODULES: usize = 1 << 20;

/// The family and sizes of a decoder.
///
/// ```
/// use turnwise_candle::DecoderConfig;
///
/// let config = DecoderConfig { max_positions: 128, ..DecoderConfig::small(320) };
/// assert!(config.validate().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderConfig {
    /// The family.
    #[serde(default)]
    pub architecture: Architecture,
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward half; experts have their own.
    pub intermediate_size: usize,
    /// Number of layers.
    pub n_layers: usize,
    /// Number of query heads; a multiple of `n_kv_heads`.
    pub n_heads: usize,
    /// Number of key and value heads.
    pub n_kv_heads: usize,
    /// Width of one head; even. Independent of `hidden_size / n_heads`.
    pub head_dim: usize,
    /// The longest sequence.
    pub max_positions: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies.
    #[serde(default)]
    pub rope_scaling: RopeScaling,
    /// The sliding window of some layers.
    #[serde(default)]
    pub sliding_window: Option<SlidingWindow>,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
}

impl DecoderConfig {
    /// Returns the sizes of a model that trains on two processor cores in seconds: 2 layers of width 64, 256 positions.
    #[must_use]
    pub fn small(vocab_size: usize) -> Self {
        Self {
            architecture: Architecture::default(),
            vocab_size,
            hidden_size: 64,
            intermediate_size: 192,
            n_layers: 2,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 16,
            max_positions: 256,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            sliding_window: None,
            tie_word_embeddings: true,
        }
    }

    /// Checks that the sizes describe a model.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`] with every invalid field and its allowed values.
    pub fn validate(&self) -> Result<(), ModelError> {
        let mut problems = Vec::new();
        let sizes = self.sizes();
        let wrong = sizes.iter().filter(|(_, size)| *size == 0 || *size > 1 << 28);
        problems.extend(
            wrong.map(|(name, size)| format!("{name} is {size} and must lie from 1 to 2^28")),
        );
        if self.n_kv_heads > 0 && !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let Self { n_heads, n_kv_heads, .. } = self;
            problems.push(format!(
                "n_heads ({n_heads}) must be a multiple of n_kv_heads ({n_kv_heads})"
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            problems.push(format!(
                "head_dim is {} and must be even, because rotary positions rotate pairs",
                self.head_dim
            ));
        }
        let n_experts = self.architecture.experts().map_or(1, |experts| experts.n_experts);
        if self.n_layers.saturating_mul(n_experts) > MOST_MODULES {
            let n_layers = self.n_layers;
            problems.push(format!(
                "{n_layers} layers with {n_experts} feed-forward halves each are more than {MOST_MODULES}"
            ));
        }
        if let Some(Experts { n_experts, n_chosen, .. }) = self.architecture.experts()
            && n_chosen > n_experts
        {
            problems.push(format!("{n_chosen} experts for each token are more than {n_experts}"));
        }
        for (name, value) in self.positive_numbers() {
            if !(value.is_finite() && value > 0.0) {
                problems.push(format!("{name} is {value} and must be a positive number"));
            }
        }
        problems.extend(self.rope_problems());
        problems.extend(self.window_problem());
        if problems.is_empty() {
            return Ok(());
        }
        Err(ModelError::BadConfig(problems.join("; ")))
    }

    /// Returns the factors of a forward pass.
    pub(crate) fn scales(&self) -> Scales {
        self.architecture.scales(self.hidden_size, self.head_dim)
    }

    fn rope_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let rotary_dim = self.architecture.rotary_dim(self.head_dim);
        if rotary_dim > self.head_dim || !rotary_dim.is_multiple_of(2) {
            problems.push(format!(
                "the rotary part of a head is {rotary_dim} wide and must be even and at most {}",
                self.head_dim
            ));
        }
        match &self.rope_scaling {
            RopeScaling::Llama3 { low_freq_factor, high_freq_factor, .. }
                if low_freq_factor >= high_freq_factor =>
            {
                problems.push(format!(
                    "low_freq_factor ({low_freq_factor}) must be below high_freq_factor ({high_freq_factor})"
                ));
            }
            RopeScaling::LongRope { short_factor, long_factor, original_max_positions, .. } => {
                for (name, factors) in
                    [("short_factor", short_factor), ("long_factor", long_factor)]
                {
                    let is_right = factors.iter().all(|factor| factor.is_finite() && *factor > 0.0);
                    if factors.len() != rotary_dim / 2 || !is_right {
                        problems.push(format!(
                            "{name} has {} numbers and must have {} positive ones",
                            factors.len(),
                            rotary_dim / 2
                        ));
                    }
                }
                if self.max_positions > *original_max_positions {
                    problems.push(format!(
                        "max_positions ({}) must be at most original_max_positions ({original_max_positions}), to which \
                         the short factors of LongRoPE apply",
                        self.max_positions
                    ));
                }
            }
            _ => {}
        }
        problems
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        let mut sizes = vec![
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("head_dim", self.head_dim),
            ("max_positions", self.max_positions),
        ];
        if let Some(experts) = self.architecture.experts() {
            sizes.extend([
                ("the number of experts", experts.n_experts),
                ("the number of experts for each token", experts.n_chosen),
                ("the width of an expert", experts.intermediate_size),
                ("sparse_step", experts.sparse_step),
            ]);
        }
        sizes.extend(
            self.architecture.shared_size().map(|size| ("the width of the shared expert", size)),
        );
        sizes.extend(
            self.sliding_window.as_ref().map(|window| ("the sliding window", window.length)),
        );
        match self.rope_scaling {
            RopeScaling::Llama3 { original_max_positions, .. }
            | RopeScaling::Yarn { original_max_positions, .. }
            | RopeScaling::LongRope { original_max_positions, .. } => {
                sizes.push(("original_max_positions", original_max_positions));
            }
            RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Dynamic { .. } => {}
        }
        sizes
    }

    fn positive_numbers(&self) -> Vec<(&'static str, f64)> {
        let mut numbers =
            vec![("rms_norm_eps", self.rms_norm_eps), ("rope_theta", self.rope_theta)];
        match self.architecture {
            Architecture::Gemma3 { query_pre_attn_scalar, local_rope_theta, .. } => {
                numbers.extend([
                    ("query_pre_attn_scalar", query_pre_attn_scalar),
                    ("the local rope_theta", local_rope_theta),
                ]);
            }
            Architecture::Granite {
                multipliers: Multipliers { embedding, attention, residual, logits },
                ..
            } => numbers.extend([
                ("embedding_multiplier", embedding),
                ("attention_multiplier", attention),
                ("residual_multiplier", residual),
                ("logits_scaling", logits),
            ]),
            Architecture::Phi3 { partial_rotary_factor } => {
                numbers.push(("partial_rotary_factor", partial_rotary_factor));
            }
            _ => {}
        }
        match self.rope_scaling {
            RopeScaling::None => {}
            RopeScaling::LongRope { attention_factor, .. } => {
                numbers.push(("attention_factor", attention_factor));
            }
            RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor } => {
                numbers.push(("the rope's factor", factor));
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, .. } => numbers
                .extend([
                    ("the rope's factor", factor),
                    ("low_freq_factor", low_freq_factor),
                    ("high_freq_factor", high_freq_factor),
                ]),
            RopeScaling::Yarn { factor, beta_fast, beta_slow, attention_factor, .. } => numbers
                .extend([
                    ("the rope's factor", factor),
                    ("beta_fast", beta_fast),
                    ("beta_slow", beta_slow),
                    ("attention_factor", attention_factor),
                ]),
        }
        numbers
    }
}
