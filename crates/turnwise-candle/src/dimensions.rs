//! Sizes of a model that its operations need.

use std::borrow::Cow;
use std::sync::Arc;

use crate::architecture::RopeKind;
use crate::rope::{Rope, RopeScaling};
use crate::{Architecture, DecoderConfig};

/// How heads are laid out: `n_heads` queries, `n_kv_heads` keys and as many values side by side, `head_dim` each.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_field_names, reason = "the names of the configuration")]
pub(crate) struct Heads {
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
    /// The factor of attention scores.
    pub(crate) scale: f32,
}

impl Heads {
    pub(crate) fn of(config: &DecoderConfig) -> Self {
        let DecoderConfig { n_heads, n_kv_heads, head_dim, .. } = *config;
        Self { n_heads, n_kv_heads, head_dim, scale: config.scales().scores }
    }

    /// Returns the number of query heads that share a key head.
    pub(crate) fn group(self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Returns the width of a token's queries, keys and values together.
    pub(crate) fn width(self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }
}

/// The rotary position embeddings of a model's layers.
#[derive(Debug)]
pub(crate) struct Ropes {
    global: Rope,
    /// That of layers with a sliding window, if it is another.
    pub(crate) local: Option<Rope>,
    absent: Rope,
}

impl Ropes {
    pub(crate) fn new(config: &DecoderConfig) -> Self {
        let DecoderConfig { architecture, rope_theta, rope_scaling, max_positions, .. } = config;
        let rotary_dim = architecture.rotary_dim(config.head_dim);
        let of = |scaling: &RopeScaling, theta, rotary_dim| {
            Rope::new(scaling, theta, rotary_dim, *max_positions)
        };
        let local_theta = match architecture {
            Architecture::Gemma3 { local_rope_theta, .. } => Some(*local_rope_theta),
            _ => None,
        };
        Self {
            global: of(rope_scaling, *rope_theta, rotary_dim),
            local: local_theta.map(|theta| of(&RopeScaling::None, theta, rotary_dim)),
            absent: of(&RopeScaling::None, *rope_theta, 0),
        }
    }

    pub(crate) fn of(&self, kind: RopeKind) -> &Rope {
        match kind {
            RopeKind::Global => &self.global,
            RopeKind::Local => self.local.as_ref().unwrap_or(&self.global),
            RopeKind::Absent => &self.absent,
        }
    }
}

/// Sizes and rotary position embeddings of a model.
#[derive(Clone, Debug)]
pub(crate) struct Dimensions {
    pub(crate) hidden_size: usize,
    pub(crate) heads: Heads,
    pub(crate) eps: f64,
    /// Added to the stored gains of all norms.
    pub(crate) gain_offset: f32,
    pub(crate) ropes: Arc<Ropes>,
    /// The sliding windows of the layers, each once; `None` for layers without one.
    pub(crate) windows: Vec<Option<usize>>,
}

impl Dimensions {
    pub(crate) fn new(config: &DecoderConfig, ropes: Arc<Ropes>) -> Self {
        Self {
            hidden_size: config.hidden_size,
            heads: Heads::of(config),
            eps: config.rms_norm_eps,
            gain_offset: config.architecture.properties().gain_offset,
            ropes,
            windows: config.windows(),
        }
    }

    /// Returns the gains that a norm multiplies by, given those of the checkpoint.
    pub(crate) fn gains<'a>(&self, stored: &'a [f32]) -> Cow<'a, [f32]> {
        if self.gain_offset == 0.0 {
            return Cow::Borrowed(stored);
        }
        Cow::Owned(stored.iter().map(|gain| gain + self.gain_offset).collect())
    }
}
