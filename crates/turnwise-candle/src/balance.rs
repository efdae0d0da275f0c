//! Whether experts are used evenly.

use std::sync::Arc;

use candle_core::{D, Device, Result, Tensor};

use crate::layout::Choice;
use crate::numbers::numbers;
use crate::routing::Routing;

/// What a layer's router decided.
#[derive(Clone, Debug)]
pub(crate) struct Routed {
    /// Of every expert for every token. `[N, E]`
    pub(crate) probabilities: Tensor,
    pub(crate) routing: Arc<Routing>,
}

impl Routed {
    pub(crate) fn new(probabilities: Tensor, choice: Choice) -> Result<Self> {
        let routing = Arc::new(Routing::new(&numbers(&probabilities)?, choice));
        Ok(Self { probabilities, routing })
    }

    /// What the outputs of the chosen experts are multiplied by. `[N, n_chosen]`
    pub(crate) fn weights(&self, choice: Choice) -> Result<Tensor> {
        let shape = ((), choice.n_chosen);
        let chosen = Tensor::from_slice(&self.routing.chosen, shape, &Device::Cpu)?;
        let weights = self.probabilities.gather(&chosen, D::Minus1)?;
        if !choice.renormalize {
            return Ok(weights);
        }
        weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)
    }
}

/// The auxiliary loss that evens out how often experts are used:
///
/// ```text
/// E sum_e f_e P_e
/// ```
///
/// with `f_e` the share of tokens that use expert `e` and `P_e` the mean of its probability, both over the tokens of all
/// layers together. `n_chosen` when all are used alike, more when not. The gradient goes through `P_e` alone. Source: Fedus
/// et al., *Switch transformers*, 2021, equations 4 to 6; in this form `load_balancing_loss_func` of transformers.
///
/// `None` for a model without experts.
pub(crate) fn balance_loss(layers: &[Routed]) -> Result<Option<Tensor>> {
    let Some(first) = layers.first() else { return Ok(None) };
    let (_, n_experts) = first.probabilities.dims2()?;
    let mut n_tokens = 0;
    let mut counts = vec![0; n_experts];
    let mut sums = Vec::with_capacity(layers.len());
    for layer in layers {
        n_tokens += layer.probabilities.dim(0)?;
        counts.iter_mut().zip(layer.routing.counts()).for_each(|(sum, count)| *sum += count);
        sums.push(layer.probabilities.sum(0)?);
    }
    let n_tokens = n_tokens as f64;
    let scale = |count: usize| (n_experts as f64 * count as f64 / (n_tokens * n_tokens)) as f32;
    let shares: Vec<f32> = counts.into_iter().map(scale).collect();
    let shares = Tensor::from_vec(shares, n_experts, &Device::Cpu)?;
    (Tensor::stack(&sums, 0)?.sum(0)? * shares)?.sum_all().map(Some)
}
