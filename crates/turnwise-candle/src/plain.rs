//! The model's operations, composed of the tensor library's differentiable ones, on any device.
//!
//! The library's fused norms, softmax and rotary embedding silently have no gradient: none of them may be used here.

mod arithmetic;
mod attention;
mod experts;

use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{D, Device, Result, Tensor, Var};
use candle_nn::ops::log_softmax;

pub(crate) use arithmetic::{Arithmetic, add_gated, gate};
use attention::Padding;
pub(crate) use attention::{Rotations, attend};
pub(crate) use experts::{Routed, mix};

use crate::ComputePrecision;
use crate::architecture::Activation;
use crate::balance::{LayerUse, balance_slopes};
use crate::batch::{PackedBatch, Predictions};
use crate::dimensions::Dimensions;
use crate::forward;
use crate::fused::logprob::REMOVED;
use crate::layout::{Attending, HeadNorms, Layer, Linear, Mixture, Network};
use crate::ops::Ops;
use crate::tape::{Keep, Loss};

/// A forward pass over a batch.
#[derive(Debug)]
pub(crate) struct Plain {
    arithmetic: Arithmetic,
    batch: Arc<PackedBatch>,
    device: Device,
    keep: Keep,
    /// The rotations of the batch's positions.
    rotations: Rotations,
    /// The padding of the batch's spans.
    padding: Padding,
    /// The input of each layer, if layers are recomputed.
    inputs: Vec<Tensor>,
    predicted: Option<Distributions>,
    /// The routing of each layer with experts.
    pub(crate) routed: Vec<Routed>,
    pub(crate) uses: Vec<LayerUse>,
    /// Whether a layer is being recomputed for its backward pass.
    again: bool,
}

/// The results for predicted distributions, with their graph.
#[derive(Clone, Debug)]
struct Distributions {
    /// The log-probability of each target, in nats. `[M]`
    logprobs: Tensor,
    /// The entropy of each distribution, in nats. `[R]`
    entropies: Tensor,
}

impl Plain {
    pub(crate) fn new(
        dimensions: &Dimensions,
        precision: ComputePrecision,
        device: Device,
        batch: Arc<PackedBatch>,
        keep: Keep,
    ) -> Result<Self> {
        Ok(Self {
            arithmetic: Arithmetic::new(dimensions, precision),
            rotations: Rotations::new(&dimensions.ropes, &batch.positions, &device)?,
            padding: Padding::new(&batch, &dimensions.windows, &device)?,
            batch,
            device,
            keep,
            inputs: Vec::new(),
            predicted: None,
            routed: Vec::new(),
            uses: Vec::new(),
            again: false,
        })
    }

    pub(crate) fn batch(&self) -> &Arc<PackedBatch> {
        &self.batch
    }

    /// Returns the log-probability of each target, in nats. `[M]`
    pub(crate) fn logprobs(&self) -> Result<Vec<f32>> {
        self.predicted.as_ref().map_or(Ok(Vec::new()), |predicted| predicted.logprobs.to_vec1())
    }

    /// Returns the entropy of each distribution, in nats. `[R]`
    pub(crate) fn entropies(&self) -> Result<Vec<f32>> {
        self.predicted.as_ref().map_or(Ok(Vec::new()), |predicted| predicted.entropies.to_vec1())
    }

    /// Returns the gradients of `loss` by every variable that it reaches, distributed over the stores.
    pub(crate) fn backward(
        mut self,
        network: &Network<Tensor>,
        loss: Loss<'_>,
    ) -> Result<Vec<GradStore>> {
        let Some(predicted) = self.predicted.take() else { return Ok(Vec::new()) };
        let weighted = |values: &Tensor, weights: &[f32]| {
            (values * Tensor::from_slice(weights, weights.len(), &self.device)?)?.sum_all()
        };
        let mut total = weighted(&predicted.logprobs, loss.dlogprobs)?;
        if let Some(dentropies) = loss.dentropies {
            total = (total + weighted(&predicted.entropies, dentropies)?)?;
        }
        let uneven = self.uneven(loss.balance)?;
        total = self.add_uneven(total, uneven.as_ref())?;
        let mut stores = vec![total.backward()?];
        let mut next = self.inputs.pop();
        // The last input is the output of the last layer.
        let inputs = std::mem::take(&mut self.inputs);
        self.again = true;
        for (layer, input) in network.layers.iter().zip(&inputs).rev() {
            let Some(above) = next.and_then(|y| stores.last_mut()?.remove(&y)) else { break };
            self.routed.clear();
            let y = forward::layer(&mut self, layer, input)?;
            // The library's gradient of a variable has a graph to the weights that it was computed with.
            let total = self.add_uneven((y * above.detach())?.sum_all()?, uneven.as_ref())?;
            stores.push(total.backward()?);
            next = Some(input.clone());
        }
        Ok(stores)
    }

    /// Returns the factor of each expert's probability for each token in the loss. `[N, E]`
    fn uneven(&self, balance: f64) -> Result<Option<Tensor>> {
        let slopes = if balance == 0.0 { None } else { balance_slopes(&self.uses) };
        let Some(slopes) = slopes else { return Ok(None) };
        let slopes: Vec<f32> = slopes.into_iter().map(|slope| (slope * balance) as f32).collect();
        let slopes = Tensor::from_slice(&slopes, (1, slopes.len()), &self.device)?;
        let times: Vec<f32> = self.batch.multiplicities.iter().map(|times| *times as f32).collect();
        let times = Tensor::from_slice(&times, (times.len(), 1), &self.device)?;
        times.broadcast_mul(&slopes).map(Some)
    }

    fn add_uneven(&self, total: Tensor, uneven: Option<&Tensor>) -> Result<Tensor> {
        let Some(uneven) = uneven else { return Ok(total) };
        self.routed
            .iter()
            .try_fold(total, |total, routed| total + (&routed.probabilities * uneven)?.sum_all()?)
    }

    fn ids(&self, ids: &[u32]) -> Result<Tensor> {
        Tensor::from_slice(ids, ids.len(), &self.device)
    }
}

impl Ops for Plain {
    type Weight = Tensor;
    type Value = Tensor;

    fn embed(&mut self, table: &Tensor) -> Result<Tensor> {
        table.index_select(&self.ids(&self.batch.inputs)?, 0)
    }

    fn norm(&mut self, x: &Tensor, gain: &Tensor) -> Result<Tensor> {
        self.arithmetic.norm(x, gain)
    }

    fn linear(&mut self, x: &Tensor, linears: &[Linear<Tensor>]) -> Result<Tensor> {
        self.arithmetic.linear(x, linears)
    }

    fn add_linear(&mut self, onto: &Tensor, x: &Tensor, linear: &Linear<Tensor>) -> Result<Tensor> {
        onto + self.arithmetic.product(x, linear)?
    }

    fn rotate_heads(
        &mut self,
        qkv: &Tensor,
        norms: Option<&HeadNorms<Tensor>>,
        attending: Attending,
    ) -> Result<Tensor> {
        self.arithmetic.rotate_heads(qkv, norms, self.rotations.of(attending.rope))
    }

    fn attention(&mut self, qkv: &Tensor, attending: Attending) -> Result<Tensor> {
        attention::attention(qkv, &self.padding, attending.window, self.arithmetic)
    }

    fn gate(&mut self, gate_up: &Tensor, activation: Activation) -> Result<Tensor> {
        gate(gate_up, activation)
    }

    fn scale(&mut self, x: &Tensor, factor: f32) -> Result<Tensor> {
        x * f64::from(factor)
    }

    fn add(&mut self, onto: &Tensor, x: &Tensor) -> Result<Tensor> {
        onto + x
    }

    fn add_gated(&mut self, onto: &Tensor, x: &Tensor, gate: &Tensor) -> Result<Tensor> {
        add_gated(onto, x, gate)
    }

    fn add_mixture(
        &mut self,
        onto: &Tensor,
        x: &Tensor,
        mixture: &Mixture<Tensor>,
    ) -> Result<Tensor> {
        let (mixed, routed) = mix(x, mixture, self.arithmetic.precision)?;
        if !self.again {
            self.uses.push(routed.used(mixture.choice, &self.batch.multiplicities)?);
        }
        self.routed.push(routed);
        onto + mixed
    }

    fn select(&mut self, x: &Tensor) -> Result<Tensor> {
        x.index_select(&self.ids(&self.batch.predictions.sources)?, 0)
    }

    fn predict(&mut self, x: &Tensor, head: &Tensor) -> Result<()> {
        let wanted = &self.batch.predictions;
        let (rows, m) = (wanted.n_rows(), wanted.tokens.len());
        let scales = Tensor::from_slice(&wanted.scales, (rows, 1), &self.device)?;
        let mut logits = self.arithmetic.by_rows(x, head)?.broadcast_mul(&scales)?;
        if !wanted.kept.is_empty() {
            let removed =
                Tensor::from_vec(removed(wanted, logits.dim(1)?), logits.shape(), &self.device)?;
            logits = (logits + removed)?;
        }
        let logprobs = log_softmax(&logits, D::Minus1)?;
        let entropies = (logprobs.exp()? * &logprobs)?.sum(D::Minus1)?.neg()?;
        let tokens = Tensor::from_slice(&wanted.tokens, (m, 1), &self.device)?;
        let of_targets = logprobs.index_select(&self.ids(&wanted.rows())?, 0)?;
        let logprobs = of_targets.gather(&tokens, 1)?.squeeze(1)?;
        self.predicted = Some(Distributions { logprobs, entropies });
        Ok(())
    }

    fn layer(&mut self, _: usize, layer: &Layer<Tensor>, x: &Tensor) -> Result<Tensor> {
        if self.keep != Keep::Layers {
            return forward::layer(self, layer, x);
        }
        if self.inputs.is_empty() {
            self.inputs.push(x.clone());
        }
        // The layer's graph is freed; only the numbers of its output remain.
        let y = forward::layer(self, layer, x)?.detach();
        self.routed.clear();
        let y = Var::from_tensor(&y)?.as_tensor().clone();
        self.inputs.push(y.clone());
        Ok(y)
    }
}

/// Returns what is added to logits so that ids that truncation removed have no probability. `[R, V]`
fn removed(wanted: &Predictions, vocab_size: usize) -> Vec<f32> {
    let mut added = vec![0.0; wanted.n_rows() * vocab_size];
    for (row, kept) in &wanted.kept {
        let row = &mut added[row * vocab_size..][..vocab_size];
        row.fill(REMOVED);
        for id in kept {
            row[*id as usize] = 0.0;
        }
    }
    added
}
