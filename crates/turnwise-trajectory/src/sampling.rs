use serde::{Deserialize, Serialize};

/// How a token is sampled from the logits: temperature, then top-k, top-p and min-p, then one random choice.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// The divisor of the logits; 0 takes the most likely token, with log-probability 0.
    pub temperature: f32,
    /// Keeps the most likely tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keeps this many of the most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps tokens at least this fraction as likely as the most likely token; 0 keeps all.
    pub min_p: f32,
}

impl Default for Sampling {
    /// Returns the settings of the model's own distribution.
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, top_k: 0, min_p: 0.0 }
    }
}

impl Sampling {
    /// Returns the settings that always take the most likely token.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Returns whether every token of the vocabulary can be sampled, so that a trainer's softmax at the same
    /// temperature is the distribution that the token was sampled from.
    #[must_use]
    pub fn covers_vocabulary(&self) -> bool {
        self.temperature > 0.0 && self.top_p >= 1.0 && self.top_k == 0 && self.min_p <= 0.0
    }

    /// Checks that every setting is in its range.
    ///
    /// # Errors
    /// A sentence that names the field and its range.
    pub fn validate(&self) -> Result<(), String> {
        let checks = [
            (
                self.temperature.is_finite() && self.temperature >= 0.0,
                "temperature must be a finite number of at least 0",
            ),
            (self.top_p > 0.0 && self.top_p <= 1.0, "top_p must lie above 0 and at most at 1"),
            ((0.0..1.0).contains(&self.min_p), "min_p must lie from 0 to below 1"),
        ];
        checks
            .into_iter()
            .find(|(holds, _)| !holds)
            .map_or(Ok(()), |(_, wrong)| Err(wrong.to_owned()))
    }
}
