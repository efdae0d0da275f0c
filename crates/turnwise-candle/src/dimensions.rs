//! Sizes of a model that its operations need.

use std::sync::Arc;

use crate::DecoderConfig;
use crate::rope::Rope;

/// How heads are laid out: `n_heads` queries, `n_kv_heads` keys and as many values side by side, `head_dim` each.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_field_names, reason = "the names of the configuration")]
pub(crate) struct Heads {
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl Heads {
    pub(crate) fn of(config: &DecoderConfig) -> Self {
        let DecoderConfig { n_heads, n_kv_heads, head_dim, .. } = *config;
        Self { n_heads, n_kv_heads, head_dim }
    }

    /// Returns the number of query heads that share a key head.
    pub(crate) fn group(self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Returns the width of a token's queries, keys and values together.
    pub(crate) fn width(self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }

    /// Returns the factor of attention scores: one over the root of the head's width.
    pub(crate) fn scale(self) -> f32 {
        (1.0 / (self.head_dim as f64).sqrt()) as f32
    }
}

/// Sizes and rotary position embedding of a model.
#[derive(Clone, Debug)]
pub(crate) struct Dimensions {
    pub(crate) hidden_size: usize,
    pub(crate) heads: Heads,
    pub(crate) eps: f64,
    pub(crate) rope: Arc<Rope>,
}

impl Dimensions {
    pub(crate) fn new(config: &DecoderConfig, rope: Arc<Rope>) -> Self {
        let hidden_size = config.hidden_size;
        Self { hidden_size, heads: Heads::of(config), eps: config.rms_norm_eps, rope }
    }
}
