//! A model of 16 tokens whose logits are a hash of its weights and the last two tokens.

use turnwise_environment::derive_seed;
use turnwise_remote::WeightProbe;
use turnwise_trajectory::TokenId;

pub(crate) const N_IDS: u64 = 16;

/// The weights: a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Model(pub(crate) u64);

impl Model {
    pub(crate) fn logits(self, prompt: &[TokenId]) -> Vec<f32> {
        let last =
            prompt.iter().rev().take(2).fold(self.0, |seed, id| derive_seed(seed, (*id).into()));
        let logit = |id: u64| (derive_seed(last, id) % 1_000) as f32 / 250.0;
        (0..N_IDS).map(logit).collect()
    }

    /// Returns the log-probability of a token after a prompt.
    pub(crate) fn logprob(self, prompt: &[TokenId], id: TokenId, temperature: f64) -> f64 {
        let logits = self.logits(prompt);
        let scaled = logits.iter().map(|logit| f64::from(*logit) / temperature);
        let total: f64 = scaled.map(f64::exp).sum();
        f64::from(logits[id as usize]) / temperature - total.ln()
    }

    pub(crate) fn probe(self) -> WeightProbe {
        let ids: Vec<TokenId> = (1..9).collect();
        let logprob = |t: usize| self.logprob(&ids[..=t], ids[t + 1], 1.0) as f32;
        WeightProbe { logprobs: (0..ids.len() - 1).map(logprob).collect(), ids }
    }
}
