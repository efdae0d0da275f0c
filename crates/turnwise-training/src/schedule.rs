use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The learning-rate decay after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Constant.
    #[default]
    Constant,
    /// Falls to 0 along half a cosine (SGDR, arXiv 1608.03983, without restarts).
    Cosine,
}

/// The learning-rate schedule of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The peak learning rate.
    pub learning_rate: f64,
    /// The number of steps of the linear warm-up.
    pub warmup_steps: u64,
    /// The decay after the warm-up.
    pub decay: Decay,
    /// The number of steps of the whole run.
    pub steps: u64,
}

impl Default for Schedule {
    /// Returns 1e-3 from the first step on: right for models of a million weights, far too high for a billion.
    fn default() -> Self {
        Self { learning_rate: 1e-3, warmup_steps: 0, decay: Decay::Constant, steps: u64::MAX }
    }
}

impl Schedule {
    /// Returns the learning rate of a step, counted from 0.
    ///
    /// ```
    /// use turnwise_training::{Decay, Schedule};
    ///
    /// let schedule = Schedule { learning_rate: 1.0, warmup_steps: 2, decay: Decay::Cosine, steps: 10 };
    /// assert_eq!(schedule.at(0), 0.5);
    /// assert_eq!(schedule.at(2), 1.0);
    /// assert!(schedule.at(9) < 0.1);
    /// ```
    #[must_use]
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * ((step + 1) as f64 / self.warmup_steps as f64);
        }
        match self.decay {
            Decay::Constant => self.learning_rate,
            Decay::Cosine => {
                let span = self.steps.saturating_sub(self.warmup_steps).max(1) as f64;
                let done = ((step - self.warmup_steps) as f64 / span).min(1.0);
                self.learning_rate * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
            }
        }
    }
}
