use crate::Token;

/// A table of logits: a softmax for each decision.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftmaxPolicy {
    logits: Vec<Vec<f64>>,
}

impl SoftmaxPolicy {
    /// Creates a policy with these logits, `[decisions][choices]`.
    #[must_use]
    pub fn new(logits: Vec<Vec<f64>>) -> Self {
        Self { logits }
    }

    /// Returns the number of logits.
    #[must_use]
    pub fn len(&self) -> usize {
        self.logits.iter().map(Vec::len).sum()
    }

    /// Returns whether there are no decisions.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the logits, decision after decision: the order of every gradient.
    #[must_use]
    pub fn flat(&self) -> Vec<f64> {
        self.logits.concat()
    }

    /// Returns the policy whose logits are these plus `change`, `[logits]`.
    ///
    /// # Panics
    /// Panics if `change` is shorter than the logits.
    #[must_use]
    pub fn moved(&self, change: &[f64]) -> Self {
        let mut change = change.iter();
        let mut step = || change.next().copied().expect("one number for each logit");
        let moved = |row: &Vec<f64>| row.iter().map(|logit| logit + step()).collect();
        Self { logits: self.logits.iter().map(moved).collect() }
    }

    /// Returns the log-probability of a token, in nats.
    #[must_use]
    pub fn logprob(&self, token: Token) -> f64 {
        let row = &self.logits[token.decision];
        let highest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|logit| (logit - highest).exp()).sum();
        row[token.choice] - highest - sum.ln()
    }

    /// Adds `weight` · ∇log π(token) to a gradient; the component for a logit of the same decision is \[chosen\] − π.
    pub fn add_score(&self, token: Token, weight: f64, gradient: &mut [f64]) {
        let first: usize = self.logits[..token.decision].iter().map(Vec::len).sum();
        for choice in 0..self.logits[token.decision].len() {
            let chosen = if choice == token.choice { 1.0 } else { 0.0 };
            let probability = self.logprob(Token { choice, ..token }).exp();
            gradient[first + choice] += weight * (chosen - probability);
        }
    }
}
