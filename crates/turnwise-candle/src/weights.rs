//! Weights packed for the inference engine.

mod adapters;
mod stored;

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use turnwise_kernels::panels::{Epilogue, PanelFormat, Panels, StoredMatrix};

use crate::architecture::Activation;
use crate::dimensions::{Dimensions, Ropes};
use crate::layout::{
    Attending, Choice, FeedForward, Layer, Linear, Mixture, Mlp, Network, SharedExpert,
};
use crate::numbers::host_numbers;
use crate::{ComputePrecision, DecoderConfig};

pub(crate) use adapters::{AdaptedLinear, LayerAdapters, PackedAdapter};
pub(crate) use stored::{PackedMatrix, StoredParameter};

/// Weights packed for inference: matrices are panels, which products read sequentially, and matrices with the same
/// input are joined.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) config: DecoderConfig,
    pub(crate) dimensions: Dimensions,
    /// Of products in training, and of keys and values.
    pub(crate) precision: ComputePrecision,
    /// The format of matrices.
    pub(crate) format: PanelFormat,
    /// f32 on the processor, which a learner with adapters shares. `[V, D]`
    pub(crate) embedding: Tensor,
    pub(crate) embedding_scale: f32,
    pub(crate) layers: Vec<LayerWeights>,
    /// `[D]`
    pub(crate) norm: Vec<f32>,
    /// `[D, V]`
    pub(crate) head: Panels,
    pub(crate) logit_scale: f32,
}

/// Packed weights of a layer. Gains are as stored, without the offset of the family.
#[derive(Debug)]
pub(crate) struct LayerWeights {
    pub(crate) attending: Attending,
    /// `[D]`
    pub(crate) attention_norm: Option<Vec<f32>>,
    /// Queries, keys and values. `[D, (n_heads + 2 n_kv_heads) * head_dim]`
    pub(crate) qkv: Panels,
    /// Gains of queries and of keys. `[head_dim]` each, or one for all query heads and one for all key heads
    pub(crate) head_norms: Option<(Vec<f32>, Vec<f32>)>,
    /// `[n_heads * head_dim, D]`
    pub(crate) output: Panels,
    /// `[D]`
    pub(crate) attention_norm_after: Option<Vec<f32>>,
    /// `[D]`
    pub(crate) mlp_norm: Option<Vec<f32>>,
    pub(crate) feed_forward: FeedForwardWeights,
    /// `[D]`
    pub(crate) mlp_norm_after: Option<Vec<f32>>,
    pub(crate) residual_scale: f32,
}

/// Packed weights of the feed-forward half of a layer.
#[derive(Debug)]
pub(crate) enum FeedForwardWeights {
    Dense(MlpWeights),
    Mixture(MixtureWeights),
}

/// Packed weights of a gated feed-forward half of width I.
#[derive(Debug)]
pub(crate) struct MlpWeights {
    /// The epilogue of the product with gate and up.
    pub(crate) gate: Epilogue,
    /// Whether checkpoints have gate and up in one matrix.
    is_joined: bool,
    /// Gate and up, as alternating panels. `[D, 2 I]`
    pub(crate) gate_up: Panels,
    /// `[I, D]`
    pub(crate) down: Panels,
}

/// Packed weights of experts.
#[derive(Debug)]
pub(crate) struct MixtureWeights {
    pub(crate) choice: Choice,
    /// `[D, E]`
    pub(crate) router: Panels,
    /// `[E]`
    pub(crate) experts: Vec<MlpWeights>,
    pub(crate) shared: Option<SharedWeights>,
}

/// Packed weights of an expert that serves every token.
#[derive(Debug)]
pub(crate) struct SharedWeights {
    pub(crate) mlp: MlpWeights,
    /// `[D, 1]`
    pub(crate) gate: Panels,
}

impl Weights {
    /// Packs a network whose matrices are `[out, in]`, and frees each part after it is packed; only the embedding is kept
    /// as it is. Adapters are merged into their matrices.
    pub(crate) fn new(
        config: &DecoderConfig,
        ropes: Arc<Ropes>,
        network: Network<Tensor>,
        precision: ComputePrecision,
        format: PanelFormat,
    ) -> Result<Self> {
        let Network { embedding, embedding_scale, layers, norm, head, logit_scale } = network;
        let layers =
            layers.into_iter().map(|layer| read(config, layer, format)).collect::<Result<_>>()?;
        let panels = |head: &Tensor| -> Result<Panels> {
            let head = host_numbers(head)?;
            Ok(Panels::side_by_side(&[bare(&head)], config.hidden_size, format))
        };
        let head = match head {
            Some(head) => panels(&head)?,
            None => panels(&embedding)?,
        };
        let norm = host_numbers(&norm)?.to_vec();
        // On the processor already, it is not copied.
        let embedding = embedding.to_device(&Device::Cpu)?.contiguous()?;
        let (config, dimensions) = (config.clone(), Dimensions::new(config, ropes));
        Ok(Self {
            config,
            dimensions,
            precision,
            format,
            embedding,
            embedding_scale,
            layers,
            norm,
            head,
            logit_scale,
        })
    }
}

/// Packs a layer and frees it.
fn read(config: &DecoderConfig, layer: Layer<Tensor>, format: PanelFormat) -> Result<LayerWeights> {
    let mut tensors = Vec::new();
    let places = layer.map(&mut |tensor| tensors.push(tensor));
    let held = tensors.iter().map(host_numbers).collect::<Result<Vec<_>>>()?;
    let mut values = held.iter().map(|values| &**values);
    let layer = places.map(&mut |()| values.next().expect("there is a tensor for every place"));
    Ok(LayerWeights::new(config, &layer, format))
}

impl LayerWeights {
    fn new(config: &DecoderConfig, layer: &Layer<&[f32]>, format: PanelFormat) -> Self {
        let d = config.hidden_size;
        let copy = |gains: Option<&[f32]>| gains.map(<[f32]>::to_vec);
        let norms = layer.head_norms.as_ref();
        let qkv: Vec<Whole<'_>> = layer.qkv.iter().map(Whole::of).collect();
        let qkv: Vec<StoredMatrix<'_>> = qkv.iter().map(Whole::stored).collect();
        let output = Whole::of(&layer.output);
        Self {
            attending: layer.attending,
            attention_norm: copy(layer.attention_norm),
            qkv: Panels::side_by_side(&qkv, d, format),
            head_norms: norms.map(|norms| (norms.query.to_vec(), norms.key.to_vec())),
            output: Panels::side_by_side(
                &[output.stored()],
                config.n_heads * config.head_dim,
                format,
            ),
            attention_norm_after: copy(layer.attention_norm_after),
            mlp_norm: copy(layer.mlp_norm),
            feed_forward: match &layer.feed_forward {
                FeedForward::Dense(mlp) => {
                    FeedForwardWeights::Dense(MlpWeights::new(mlp, d, format))
                }
                FeedForward::Mixture(mixture) => {
                    FeedForwardWeights::Mixture(MixtureWeights::new(mixture, d, format))
                }
            },
            mlp_norm_after: copy(layer.mlp_norm_after),
            residual_scale: layer.residual_scale,
        }
    }
}

impl MlpWeights {
    fn new(mlp: &Mlp<&[f32]>, d: usize, format: PanelFormat) -> Self {
        let whole: Vec<Whole<'_>> = mlp.gate_up.iter().map(Whole::of).collect();
        let matrices: Vec<StoredMatrix<'_>> = whole.iter().map(Whole::stored).collect();
        let [gate, up] = match matrices[..] {
            [gate, up] => [gate, up],
            [joined] => halves(joined),
            _ => unreachable!("gate and up are two matrices or one"),
        };
        let down = Whole::of(&mlp.down);
        Self {
            gate: match mlp.activation {
                Activation::Silu => Epilogue::SwiGlu,
                Activation::GeluTanh => Epilogue::GeGlu,
            },
            is_joined: matrices.len() == 1,
            gate_up: Panels::interleaved(gate, up, d, format),
            down: Panels::side_by_side(&[down.stored()], gate.matrix.len() / d, format),
        }
    }
}

/// Splits a matrix with gate and up into both.
fn halves(joined: StoredMatrix<'_>) -> [StoredMatrix<'_>; 2] {
    let (gate, up) = joined.matrix.split_at(joined.matrix.len() / 2);
    let (gate_bias, up_bias) = joined.bias.map(|bias| bias.split_at(bias.len() / 2)).unzip();
    [StoredMatrix { matrix: gate, bias: gate_bias }, StoredMatrix { matrix: up, bias: up_bias }]
}

impl MixtureWeights {
    fn new(mixture: &Mixture<&[f32]>, d: usize, format: PanelFormat) -> Self {
        let size = mixture.gate.len() / mixture.choice.n_experts;
        let gates = mixture.gate.chunks_exact(size).zip(mixture.up.chunks_exact(size));
        let experts = gates.zip(mixture.down.chunks_exact(size)).map(|((gate, up), down)| {
            let linear = |weight| Linear { weight, bias: None, adapter: None };
            let gate_up = vec![linear(gate), linear(up)];
            let mlp = Mlp { activation: Activation::Silu, gate_up, down: linear(down) };
            MlpWeights::new(&mlp, d, format)
        });
        Self {
            choice: mixture.choice,
            // The choice of experts is made in f32.
            router: Panels::side_by_side(&[bare(mixture.router)], d, PanelFormat::F32),
            experts: experts.collect(),
            shared: mixture.shared.as_ref().map(|SharedExpert { mlp, gate }| SharedWeights {
                mlp: MlpWeights::new(mlp, d, format),
                gate: Panels::side_by_side(&[Whole::of(gate).stored()], d, format),
            }),
        }
    }
}

/// A matrix with its adapter merged.
struct Whole<'a> {
    matrix: Cow<'a, [f32]>,
    bias: Option<&'a [f32]>,
}

impl<'a> Whole<'a> {
    fn of(linear: &Linear<&'a [f32]>) -> Self {
        Self { matrix: linear.merged(), bias: linear.bias }
    }

    fn stored(&self) -> StoredMatrix<'_> {
        StoredMatrix { matrix: &self.matrix, bias: self.bias }
    }
}

fn bare(matrix: &[f32]) -> StoredMatrix<'_> {
    StoredMatrix { matrix, bias: None }
}
