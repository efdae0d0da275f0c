use serde::{Deserialize, Serialize};

/// A success rate with its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SuccessRate {
    /// Solved episodes over scored episodes.
    pub success_rate: f64,
    /// The interval's lower end.
    pub ci_low: f64,
    /// The interval's upper end.
    pub ci_high: f64,
    /// Scored episodes.
    pub episodes: usize,
}

/// The 97.5 % quantile of the standard normal distribution.
const Z: f64 = 1.959_963_984_540_054;

impl SuccessRate {
    /// Computes the rate over tasks; each entry has the results of a task's episodes.
    ///
    /// The interval is Wilson's score interval (1927), which stays inside 0 to 1 and is accurate at both ends. Episodes
    /// of one task are not independent, so the sample size is divided by the design effect: the variance of the rate
    /// estimated between tasks over the variance that independent episodes would have (Kish 1965), at least 1 and at
    /// most the episodes per task. Where all episodes agree, nothing can be estimated between tasks, and each task counts
    /// as one observation.
    ///
    /// ```
    /// use turnwise_training::SuccessRate;
    ///
    /// let rate = SuccessRate::of(&vec![vec![true]; 100]);
    /// assert_eq!(rate.success_rate, 1.0);
    /// assert!(rate.ci_low > 0.96 && rate.ci_high == 1.0);
    /// ```
    #[must_use]
    pub fn of(tasks: &[Vec<bool>]) -> Self {
        let n: usize = tasks.iter().map(Vec::len).sum();
        if n == 0 {
            return Self { success_rate: 0.0, ci_low: 0.0, ci_high: 1.0, episodes: 0 };
        }
        let solved = tasks.iter().flatten().filter(|solved| **solved).count();
        let rate = solved as f64 / n as f64;
        let (ci_low, ci_high) = wilson(rate, n as f64 / design_effect(tasks, rate, n));
        Self { success_rate: rate, ci_low, ci_high, episodes: n }
    }
}

/// Returns Wilson's 95 % score interval of a rate over `n` independent observations.
///
/// ```
/// let (low, high) = turnwise_training::wilson(0.5, 100.0);
/// assert!((low - 0.404).abs() < 1e-3 && (high - 0.596).abs() < 1e-3);
/// ```
#[must_use]
pub fn wilson(rate: f64, n: f64) -> (f64, f64) {
    let centre = (rate + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let half = Z / (1.0 + Z * Z / n) * (rate * (1.0 - rate) / n + Z * Z / (4.0 * n * n)).sqrt();
    // At the ends the exact bound is the rate itself; rounding must not exclude it.
    ((centre - half).max(0.0).min(rate), (centre + half).min(1.0).max(rate))
}

fn design_effect(tasks: &[Vec<bool>], rate: f64, n: usize) -> f64 {
    let played = tasks.iter().filter(|episodes| !episodes.is_empty()).count();
    let independent = rate * (1.0 - rate) / n as f64;
    let largest = tasks.iter().map(Vec::len).max().unwrap_or(1) as f64;
    if independent == 0.0 {
        return n as f64 / played as f64;
    }
    if played < 2 || largest < 2.0 {
        return 1.0;
    }
    let deviation = |episodes: &Vec<bool>| {
        let solved = episodes.iter().filter(|solved| **solved).count() as f64;
        (solved - rate * episodes.len() as f64).powi(2)
    };
    let between: f64 = tasks.iter().map(deviation).sum::<f64>() / (n as f64 * n as f64);
    let corrected = between * played as f64 / (played as f64 - 1.0);
    (corrected / independent).clamp(1.0, largest)
}
