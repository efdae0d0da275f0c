//! The floating-point operations of a model, computed from its sizes.
//!
//! Counts only matrix products, with two operations for each multiply-add: no norms, no softmax, no optimiser. Per
//! layer and token, with `q = n_heads * head_dim` and `kv = n_kv_heads * head_dim`,
//!
//! ```text
//! 2 (D (q + 2 kv) + q D + 3 D I)       projections and feed-forward
//! 4 q (position + 1)                   scores and mixing, over the tokens before and itself alone
//! ```
//!
//! and `2 D V` for each row of logits. A backward pass has two such products for each of the forward pass: a training
//! step counts three times its forward pass. A common prefix of several rows is counted once, because computing it once
//! is enough: no implementation can exceed the machine's peak by this count.

use std::ops::Range;

use turnwise_candle::{ComputePrecision, DecoderConfig, EngineWeights};

/// Returns the operations of a forward pass over tokens at these positions of their sequences, with this number of rows
/// of logits.
pub(super) fn forward(
    config: &DecoderConfig,
    spans: impl IntoIterator<Item = Range<usize>>,
    n_logits: usize,
) -> f64 {
    let per_token = 2.0 * layer_weights(config) as f64;
    let per_pair = 4.0 * (config.n_heads * config.head_dim) as f64;
    let of_span = |span: Range<usize>| {
        // The sum of `position + 1` over the span.
        let pairs = (span.end * (span.end + 1) - span.start * (span.start + 1)) / 2;
        per_token * span.len() as f64 + per_pair * pairs as f64
    };
    let layer: f64 = spans.into_iter().map(of_span).sum();
    layer * config.n_layers as f64 + 2.0 * (head_weights(config) * n_logits) as f64
}

/// Returns the numbers in the matrices of a layer: multiply-adds per token.
fn layer_weights(config: &DecoderConfig) -> usize {
    let DecoderConfig { hidden_size, intermediate_size, n_heads, n_kv_heads, head_dim, .. } =
        *config;
    hidden_size * (2 * (n_heads + n_kv_heads) * head_dim + 3 * intermediate_size)
}

/// Returns the numbers in the output head.
fn head_weights(config: &DecoderConfig) -> usize {
    config.hidden_size * config.vocab_size
}

/// Returns the bytes of the matrices that a decoding step reads.
pub(super) fn weight_bytes(
    config: &DecoderConfig,
    weights: EngineWeights,
    precision: ComputePrecision,
) -> f64 {
    let numbers = (config.n_layers * layer_weights(config) + head_weights(config)) as f64;
    match weights {
        EngineWeights::Compute => numbers * number_bytes(precision) as f64,
        // With a scale of four bytes for each 64 numbers.
        EngineWeights::Int8 => numbers * 17.0 / 16.0,
    }
}

/// Returns the bytes of the keys and values of a token.
pub(super) fn kv_bytes(config: &DecoderConfig, precision: ComputePrecision) -> f64 {
    let numbers = 2 * config.n_layers * config.n_kv_heads * config.head_dim;
    (numbers * number_bytes(precision)) as f64
}

fn number_bytes(precision: ComputePrecision) -> usize {
    match precision {
        ComputePrecision::F32 => 4,
        ComputePrecision::Bf16 => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> DecoderConfig {
        DecoderConfig { n_layers: 3, ..DecoderConfig::small(100) }
    }

    /// Returns the operations of one span.
    fn of(span: Range<usize>, n_logits: usize) -> f64 {
        forward(&config(), std::iter::once(span), n_logits)
    }

    #[test]
    fn a_sequence_costs_the_same_in_pieces() {
        assert_eq!(of(0..40, 7), forward(&config(), [0..13, 13..40], 3) + of(0..0, 4));
    }

    #[test]
    fn one_token_is_counted_by_hand() {
        // Width 64, 4 heads on 2 of 16, feed-forward 192.
        let weights = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 192;
        assert_eq!(of(5..6, 1), f64::from(3 * (2 * weights + 4 * 64 * 6) + 2 * 64 * 100));
        for (precision, bytes) in [(ComputePrecision::F32, 4), (ComputePrecision::Bf16, 2)] {
            let all = f64::from(bytes * (3 * weights + 64 * 100));
            assert_eq!(weight_bytes(&config(), EngineWeights::Compute, precision), all);
            assert_eq!(kv_bytes(&config(), precision), f64::from(bytes * 2 * 3 * 32));
        }
        let int8 = weight_bytes(&config(), EngineWeights::Int8, ComputePrecision::F32);
        assert_eq!(int8, f64::from(3 * weights + 64 * 100) * 1.0625);
    }
}
