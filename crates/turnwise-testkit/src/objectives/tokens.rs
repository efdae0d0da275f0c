use turnwise_objective::{Advantages, Sequence};

/// The columns of a [`Sequence`], owned: strategies generate them, and checks evaluate them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tokens {
    /// log π_θ(y_t) under the policy that is being trained.
    pub logprobs: Vec<f64>,
    /// log π_b(y_t) under the policy that sampled the token.
    pub behavior_logprobs: Vec<f64>,
    /// A_t.
    pub advantages: Vec<f64>,
}

impl Tokens {
    /// Creates tokens with these log ratios and a behaviour log-probability of −1 each.
    #[must_use]
    pub fn drifted(log_ratios: &[f64], advantages: &[f64]) -> Self {
        Self {
            logprobs: log_ratios.iter().map(|log_ratio| log_ratio - 1.0).collect(),
            behavior_logprobs: vec![-1.0; log_ratios.len()],
            advantages: advantages.to_vec(),
        }
    }

    /// Returns the number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.logprobs.len()
    }

    /// Returns whether there are no tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.logprobs.is_empty()
    }

    /// Returns the sequence with the advantage of each token.
    ///
    /// # Panics
    ///
    /// Panics if the columns differ in length.
    #[must_use]
    pub fn per_token(&self) -> Sequence<'_> {
        self.sequence(Advantages::PerToken(&self.advantages))
    }

    /// Returns the sequence with one advantage for all tokens.
    ///
    /// # Panics
    ///
    /// Panics if the columns differ in length.
    #[must_use]
    pub fn uniform(&self, advantage: f64) -> Sequence<'_> {
        self.sequence(Advantages::Uniform(advantage))
    }

    fn sequence<'a>(&'a self, advantages: Advantages<'a>) -> Sequence<'a> {
        Sequence::new(&self.logprobs, &self.behavior_logprobs, advantages)
            .expect("the columns have one length")
    }

    /// Returns log π_θ − log π_b of each token.
    #[must_use]
    pub fn log_ratios(&self) -> Vec<f64> {
        self.logprobs.iter().zip(&self.behavior_logprobs).map(|(a, b)| a - b).collect()
    }

    /// Returns log s_i, the mean of the log ratios.
    #[must_use]
    pub fn log_ratio(&self) -> f64 {
        mean(&self.log_ratios())
    }

    /// Returns the mean of the advantages.
    #[must_use]
    pub fn mean_advantage(&self) -> f64 {
        mean(&self.advantages)
    }

    /// Returns the tokens at these positions, in this order.
    ///
    /// # Panics
    ///
    /// Panics if there is no token at a position.
    #[must_use]
    pub fn pick(&self, positions: &[usize]) -> Self {
        let of = |column: &[f64]| positions.iter().map(|&position| column[position]).collect();
        Self {
            logprobs: of(&self.logprobs),
            behavior_logprobs: of(&self.behavior_logprobs),
            advantages: of(&self.advantages),
        }
    }

    /// Returns the tokens with the advantages multiplied by a number.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        let advantages = self.advantages.iter().map(|advantage| factor * advantage).collect();
        Self { advantages, ..self.clone() }
    }
}

/// Returns the mean; NaN without values.
pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
