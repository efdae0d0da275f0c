use std::sync::Arc;

use crate::DecoderConfig;
use crate::layout::{Choice, FeedForward, Layer, Linear, Mixture, Mlp, Network};
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
    pub(crate) qkv: Product,
    /// Of queries and of keys. `[head_dim]` each
    pub(crate) head_norms: Option<(Vec<f32>, Vec<f32>)>,
    /// `[n_heads * head_dim, D]`
    pub(crate) output: Product,
    /// `[D]`
    pub(crate) mlp_norm: Vec<f32>,
    pub(crate) feed_forward: FeedForwardWeights,
}

/// A matrix, and what is added to its product.
#[derive(Debug)]
pub(crate) struct Product {
    /// `[in, out]`
    pub(crate) matrix: Vec<f32>,
    /// `[out]`
    pub(crate) bias: Option<Vec<f32>>,
}

/// Weights of the second half of a layer.
#[derive(Debug)]
pub(crate) enum FeedForwardWeights {
    Dense(MlpWeights),
    Mixture(MixtureWeights),
}

/// Weights of a SwiGLU of width I.
#[derive(Debug)]
pub(crate) struct MlpWeights {
    /// Gate and up. `[D, 2 I]`
    pub(crate) gate_up: Product,
    /// `[I, D]`
    pub(crate) down: Product,
}

/// Weights of experts.
#[derive(Debug)]
pub(crate) struct MixtureWeights {
    pub(crate) choice: Choice,
    /// `[D, E]`
    pub(crate) router: Vec<f32>,
    /// `[E]`
    pub(crate) experts: Vec<MlpWeights>,
}

impl Weights {
    /// Copies a network whose matrices are `[out, in]`.
    pub(crate) fn new(config: &DecoderConfig, rope: Arc<Rope>, network: &Network<&[f32]>) -> Self {
        Self {
            config: config.clone(),
            rope,
            embedding: network.embedding.to_vec(),
            layers: network.layers.iter().map(|layer| LayerWeights::new(config, layer)).collect(),
            norm: network.norm.to_vec(),
            head: side_by_side(&[network.output_head()], config.hidden_size),
        }
    }
}

impl LayerWeights {
    fn new(config: &DecoderConfig, layer: &Layer<&[f32]>) -> Self {
        let d = config.hidden_size;
        let norms = layer.head_norms.as_ref();
        Self {
            attention_norm: layer.attention_norm.to_vec(),
            qkv: Product::of(&[&layer.query, &layer.key, &layer.value], d),
            head_norms: norms.map(|norms| (norms.query.to_vec(), norms.key.to_vec())),
            output: Product::of(&[&layer.output], config.n_heads * config.head_dim),
            mlp_norm: layer.mlp_norm.to_vec(),
            feed_forward: match &layer.feed_forward {
                FeedForward::Dense(mlp) => FeedForwardWeights::Dense(MlpWeights::new(mlp, d)),
                FeedForward::Mixture(mixture) => {
                    FeedForwardWeights::Mixture(MixtureWeights::new(mixture, d))
                }
            },
        }
    }
}

impl MlpWeights {
    fn new(mlp: &Mlp<&[f32]>, d: usize) -> Self {
        let inner = mlp.gate.weight.len() / d;
        Self {
            gate_up: Product::of(&[&mlp.gate, &mlp.up], d),
            down: Product::of(&[&mlp.down], inner),
        }
    }
}

impl MixtureWeights {
    fn new(mixture: &Mixture<&[f32]>, d: usize) -> Self {
        let size = mixture.gate.len() / mixture.choice.n_experts;
        let gates = mixture.gate.chunks_exact(size).zip(mixture.up.chunks_exact(size));
        let experts = gates.zip(mixture.down.chunks_exact(size)).map(|((gate, up), down)| {
            let linear = |weight| Linear { weight, bias: None };
            MlpWeights::new(&Mlp { gate: linear(gate), up: linear(up), down: linear(down) }, d)
        });
        Self {
            choice: mixture.choice,
            router: side_by_side(&[mixture.router], d),
            experts: experts.collect(),
        }
    }
}

impl Product {
    /// Matrices that read the same `width` numbers; all of them have biases, or none.
    fn of(linears: &[&Linear<&[f32]>], width: usize) -> Self {
        let matrices: Vec<&[f32]> = linears.iter().map(|linear| linear.weight).collect();
        let biases: Option<Vec<&[f32]>> = linears.iter().map(|linear| linear.bias).collect();
        Self { matrix: side_by_side(&matrices, width), bias: biases.map(|biases| biases.concat()) }
    }
}

/// `[out, in]` matrices as one `[in, sum of out]`.
fn side_by_side(matrices: &[&[f32]], width: usize) -> Vec<f32> {
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
