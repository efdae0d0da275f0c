//! Load balance of experts.

use crate::layout::Choice;
use crate::routing::Routing;

/// How a layer's router used its experts, over the tokens of a batch; a token of several sequences counts for each.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LayerUse {
    pub(crate) n_tokens: f64,
    /// The number of tokens that use each expert. `[E]`
    pub(crate) counts: Vec<f64>,
    /// The sum of each expert's probability over tokens. `[E]`
    pub(crate) probabilities: Vec<f64>,
}

impl LayerUse {
    /// Counts the use of experts. `probabilities` are those of the router, `[N, E]`; `multiplicities` says how often
    /// each token counts, `[N]`.
    pub(crate) fn new(
        probabilities: &[f32],
        routing: &Routing,
        choice: Choice,
        multiplicities: &[u32],
    ) -> Self {
        let Choice { n_experts, n_chosen, .. } = choice;
        let (mut counts, mut sums) = (vec![0.0; n_experts], vec![0.0; n_experts]);
        let tokens = probabilities.chunks_exact(n_experts).zip(routing.chosen.chunks(n_chosen));
        for ((probabilities, chosen), times) in tokens.zip(multiplicities) {
            let times = f64::from(*times);
            for (sum, probability) in sums.iter_mut().zip(probabilities) {
                *sum += times * f64::from(*probability);
            }
            for expert in chosen {
                counts[*expert as usize] += times;
            }
        }
        let n_tokens = multiplicities.iter().map(|times| f64::from(*times)).sum();
        Self { n_tokens, counts, probabilities: sums }
    }
}

/// Returns the load-balancing loss:
///
/// ```text
/// E sum_e f_e P_e
/// ```
///
/// `f_e` is the share of tokens that use expert `e`, and `P_e` the mean of its probability, both over the tokens of all
/// layers together. The loss is `n_chosen` for a uniform use and larger otherwise. The gradient goes through `P_e`
/// only. Source: Fedus et al., *Switch transformers*, 2021, equations 4 to 6; in this form `load_balancing_loss_func`
/// of transformers.
///
/// Returns `None` for a model without experts.
pub(crate) fn balance_loss(layers: &[LayerUse]) -> Option<f64> {
    let slopes = balance_slopes(layers)?;
    let sums = layers.iter().map(|layer| {
        let each = layer.probabilities.iter().zip(&slopes);
        each.map(|(probability, slope)| probability * slope).sum::<f64>()
    });
    Some(sums.sum())
}

/// Returns the derivative of the loss by the probability of each expert for a token, for each sequence of the token.
/// `[E]`
pub(crate) fn balance_slopes(layers: &[LayerUse]) -> Option<Vec<f64>> {
    let n_experts = layers.first()?.counts.len();
    let n_tokens: f64 = layers.iter().map(|layer| layer.n_tokens).sum();
    let slope = |expert: usize| {
        let count: f64 = layers.iter().map(|layer| layer.counts[expert]).sum();
        n_experts as f64 * count / (n_tokens * n_tokens)
    };
    Some((0..n_experts).map(slope).collect())
}
