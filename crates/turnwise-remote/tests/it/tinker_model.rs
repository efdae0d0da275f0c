//! The model of the Tinker server: logits of the next token for each last token, and Adam.

/// The size of the vocabulary.
pub(crate) const N_IDS: usize = 16;

/// Weights, their gradient and Adam's moments.
#[derive(Clone, Debug)]
pub(crate) struct Bigrams {
    pub(crate) logits: Vec<f64>,
    pub(crate) gradient: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
    n_steps: i32,
}

impl Bigrams {
    pub(crate) fn new() -> Self {
        let n = N_IDS * N_IDS;
        let logit = |index: usize| (index * 7 % 11) as f64 / 5.0;
        let zeros = || vec![0.0; n];
        Self {
            logits: (0..n).map(logit).collect(),
            gradient: zeros(),
            first: zeros(),
            second: zeros(),
            n_steps: 0,
        }
    }

    /// Returns the distribution after a token.
    pub(crate) fn after(&self, last: u32) -> Vec<f64> {
        let row = &self.logits[last as usize * N_IDS..][..N_IDS];
        let total: f64 = row.iter().map(|logit| logit.exp()).sum();
        row.iter().map(|logit| logit.exp() / total).collect()
    }

    pub(crate) fn logprob(&self, last: u32, id: u32) -> f64 {
        self.after(last)[id as usize].ln()
    }

    /// Adds `weight` times the gradient of a log-probability.
    pub(crate) fn add(&mut self, last: u32, id: u32, weight: f64) {
        for (other, probability) in self.after(last).into_iter().enumerate() {
            let target = f64::from(u8::from(other == id as usize));
            self.gradient[last as usize * N_IDS + other] += weight * (target - probability);
        }
    }

    /// Takes a step down the gradient divided by `divisor`, and returns its norm.
    pub(crate) fn step(&mut self, divisor: f64, adam: &serde_json::Value) -> f64 {
        let number = |name: &str| adam[name].as_f64().unwrap();
        let (lr, beta1, beta2, eps) =
            (number("learning_rate"), number("beta1"), number("beta2"), number("eps"));
        self.n_steps += 1;
        let mut square = 0.0;
        for index in 0..self.logits.len() {
            let gradient = std::mem::take(&mut self.gradient[index]) / divisor;
            square += gradient * gradient;
            let (first, second) = (&mut self.first[index], &mut self.second[index]);
            *first = beta1 * *first + (1.0 - beta1) * gradient;
            *second = beta2 * *second + (1.0 - beta2) * gradient * gradient;
            let mean = *first / (1.0 - beta1.powi(self.n_steps));
            let root = (*second / (1.0 - beta2.powi(self.n_steps))).sqrt();
            let decay = number("weight_decay") * self.logits[index];
            self.logits[index] -= lr * (mean / (root + eps) + decay);
        }
        square.sqrt()
    }
}
