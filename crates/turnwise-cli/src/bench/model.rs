//! The model of a benchmark.

use clap::Args;
use serde::Serialize;
use turnwise_candle::{Decoder, DecoderConfig};

use turnwise_run::Failure;

/// The sizes of a Qwen3 with random weights and a tied head.
#[derive(Clone, Copy, Debug, Args, Serialize)]
pub(super) struct ModelArguments {
    /// Size of the vocabulary
    #[arg(long, value_name = "N", default_value_t = 8192)]
    pub(super) vocab_size: usize,
    /// Width of the residual stream
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(super) hidden_size: usize,
    /// Width inside the feed-forward half
    #[arg(long, value_name = "N", default_value_t = 768)]
    pub(super) intermediate_size: usize,
    #[arg(long, value_name = "N", default_value_t = 6)]
    pub(super) layers: usize,
    /// Query heads
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(super) heads: usize,
    /// Key and value heads
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(super) kv_heads: usize,
    /// Width of a head
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(super) head_dim: usize,
}

impl ModelArguments {
    pub(super) fn config(&self, max_positions: usize) -> DecoderConfig {
        DecoderConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            n_layers: self.layers,
            n_heads: self.heads,
            n_kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            max_positions,
            ..DecoderConfig::small(self.vocab_size)
        }
    }

    /// Creates the model for sequences of at most `max_positions` tokens, always with the same weights.
    pub(super) fn make(&self, max_positions: usize) -> Result<Decoder, Failure> {
        Decoder::random(self.config(max_positions), 1).map_err(|error| Failure::refused_by(&error))
    }

    pub(super) fn describe(&self) -> String {
        let Self { vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads, head_dim } =
            self;
        format!(
            "{layers} layers of width {hidden_size}, {heads} heads on {kv_heads} of {head_dim}, feed-forward \
             {intermediate_size}, vocabulary {vocab_size}, f32"
        )
    }
}
