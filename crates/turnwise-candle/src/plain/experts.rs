use std::sync::Arc;

use candle_core::{D, Result, Tensor};
use candle_nn::ops::softmax;

use crate::ComputePrecision;
use crate::balance::LayerUse;
use crate::layout::{Choice, Mixture};
use crate::routing::Routing;

/// The decisions of a layer's router.
#[derive(Clone, Debug)]
pub(crate) struct Routed {
    /// The probability of every expert for every token. `[N, E]`
    pub(crate) probabilities: Tensor,
    pub(crate) routing: Arc<Routing>,
}

impl Routed {
    pub(super) fn used(&self, choice: Choice, multiplicities: &[u32]) -> Result<LayerUse> {
        let probabilities: Vec<f32> = self.probabilities.flatten_all()?.to_vec1()?;
        Ok(LayerUse::new(&probabilities, &self.routing, choice, multiplicities))
    }
}

/// Computes the weighted sum of each token's experts (Fedus et al., *Switch transformers*, 2021, equations 1 and 2, for
/// more than one expert). The choice has no gradient; the weights of the chosen experts have one.
pub(crate) fn mix(
    x: &Tensor,
    mixture: &Mixture<Tensor>,
    precision: ComputePrecision,
) -> Result<(Tensor, Routed)> {
    // The router stays in f32, so that the choice of experts depends as little as possible on the precision.
    let probabilities = softmax(&x.matmul(&mixture.router.t()?)?, D::Minus1)?;
    let routing = Routing::new(&probabilities.flatten_all()?.to_vec1()?, mixture.choice);
    let tokens: Vec<u32> = routing.tokens().collect();
    let rows = x.index_select(&Tensor::from_slice(&tokens, tokens.len(), x.device())?, 0)?;
    let gate = grouped(&rows, &mixture.gate, &routing, precision)?;
    let up = grouped(&rows, &mixture.up, &routing, precision)?;
    let outputs = grouped(&(gate.silu()? * up)?, &mixture.down, &routing, precision)?;
    let weights = weights(&probabilities, &routing, mixture.choice)?;
    let mixed = combine(&outputs, &weights, &routing)?;
    Ok((mixed, Routed { probabilities, routing: Arc::new(routing) }))
}

/// Returns the factors of the chosen experts' outputs. `[N, n_chosen]`
fn weights(probabilities: &Tensor, routing: &Routing, choice: Choice) -> Result<Tensor> {
    let n = routing.chosen.len() / choice.n_chosen;
    let chosen = Tensor::from_slice(&routing.chosen, (n, choice.n_chosen), probabilities.device())?;
    let weights = probabilities.gather(&chosen, D::Minus1)?;
    if !choice.renormalize {
        return Ok(weights);
    }
    weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)
}

/// Multiplies each row by the transpose of its expert's matrix: `[M, in]` and `[E, out, in]` to `[M, out]`.
fn grouped(
    x: &Tensor,
    weight: &Tensor,
    routing: &Routing,
    precision: ComputePrecision,
) -> Result<Tensor> {
    let products = routing.starts.windows(2).enumerate().filter(|(_, pair)| pair[1] > pair[0]);
    let products = products.map(|(expert, pair)| {
        precision.matmul(&x.narrow(0, pair[0], pair[1] - pair[0])?, &weight.get(expert)?.t()?)
    });
    Tensor::cat(&products.collect::<Result<Vec<_>>>()?, 0)
}

/// Adds the weighted outputs of each token's experts: `[M, D]` in the order of the routing and `[N, n_chosen]` to `[N,
/// D]`.
fn combine(outputs: &Tensor, weights: &Tensor, routing: &Routing) -> Result<Tensor> {
    let (m, width) = outputs.dims2()?;
    let places = Tensor::from_slice(&routing.places, m, outputs.device())?;
    let outputs = outputs.index_select(&places, 0)?.reshape(((), routing.n_chosen, width))?;
    outputs.broadcast_mul(&weights.unsqueeze(2)?)?.sum(1)
}
