use std::sync::Arc;

use crate::DecoderConfig;
use crate::layout::Network;
use crate::rope::Rope;

/// Weights laid out for inference: matrices `[in, out]`, so that products run over contiguous rows, and matrices with the
/// same input side by side in one.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) config: DecoderConfig,
    pub(crate) rope: Arc<Rope>,
    /// `[V, D]`
    pub(crate) embedding: Vec<f32>,
    pub(crate) layers: Vec<LayerWeights>,
    /// `[D]`
    pub(crate) norm: Vec<f32>,
    /// `[D, V]`
    pub(crate) head: Vec<f32>,
}

/// Weights of a layer.
#[derive(Debug)]
pub(crate) struct LayerWeights {
    /// `[D]`
    pub(crate) attention_norm: Vec<f32>,
    /// Queries, keys and values. `[D, (n_heads + 2 n_kv_heads) * head_dim]`
    pub(crate) qkv: Vec<f32>,
    /// `[head_dim]`
    pub(crate) query_norm: Vec<f32>,
    /// `[head_dim]`
    pub(crate) key_norm: Vec<f32>,
    /// `[n_heads * head_dim, D]`
    pub(crate) output: Vec<f32>,
    /// `[D]`
    pub(crate) mlp_norm: Vec<f32>,
    /// Gate and up. `[D, 2 * intermediate_size]`
    pub(crate) gate_up: Vec<f32>,
    /// `[intermediate_size, D]`
    pub(crate) down: Vec<f32>,
}

impl Weights {
    /// `values` come in the order of [`specs`](crate::layout::specs), matrices `[out, in]`.
    pub(crate) fn new(config: &DecoderConfig, rope: Arc<Rope>, values: Vec<Vec<f32>>) -> Self {
        let network = Network::arrange(config, values);
        let (d, inner) = (config.hidden_size, config.intermediate_size);
        let head = side_by_side(&[network.output_head()], d);
        let layers = network.layers.into_iter().map(|layer| LayerWeights {
            qkv: side_by_side(&[&layer.query, &layer.key, &layer.value], d),
            output: side_by_side(&[&layer.output], config.n_heads * config.head_dim),
            gate_up: side_by_side(&[&layer.gate, &layer.up], d),
            down: side_by_side(&[&layer.down], inner),
            attention_norm: layer.attention_norm,
            query_norm: layer.query_norm,
            key_norm: layer.key_norm,
            mlp_norm: layer.mlp_norm,
        });
        Self {
            config: *config,
            rope,
            layers: layers.collect(),
            norm: network.norm,
            embedding: network.embedding,
            head,
        }
    }
}

/// `[out, in]` matrices as one `[in, sum of out]`.
fn side_by_side(matrices: &[&Vec<f32>], width: usize) -> Vec<f32> {
    let columns: usize = matrices.iter().map(|matrix| matrix.len() / width).sum();
    let mut joined = vec![0.0; width * columns];
    let rows = matrices.iter().flat_map(|matrix| matrix.chunks_exact(width));
    for (column, row) in rows.enumerate() {
        for (i, value) in row.iter().enumerate() {
            joined[i * columns + column] = *value;
        }
    }
    joined
}
