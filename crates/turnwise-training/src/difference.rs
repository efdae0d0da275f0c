use serde::{Deserialize, Serialize};

use crate::SuccessRate;

/// The change of a success rate between two evaluations, with its 95 % confidence interval.
///
/// The interval is Newcombe's (1998): the score intervals of the two rates are combined, which stays accurate for few
/// episodes and for rates near 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SuccessDifference {
    /// The success rate of the first evaluation.
    pub before: f64,
    /// The success rate of the second evaluation.
    pub after: f64,
    /// `after` less `before`.
    pub difference: f64,
    /// The interval's lower end.
    pub ci_low: f64,
    /// The interval's upper end.
    pub ci_high: f64,
    /// Pairs of episodes, or, without pairs, the episodes of the smaller evaluation.
    pub episodes: usize,
    /// Whether each episode was compared with the same episode of the other evaluation.
    pub is_paired: bool,
}

impl SuccessDifference {
    /// Compares the two results of each episode; each entry has the pairs `(before, after)` of one task.
    ///
    /// Episodes of one task are not independent: the rates have the design effect of [`SuccessRate::of`], and their
    /// correlation is computed from the sums over tasks. A positive correlation, which narrows the interval, is reduced
    /// by Newcombe's continuity correction.
    ///
    /// ```
    /// use turnwise_training::SuccessDifference;
    ///
    /// // Of 100 tasks, 30 were solved before, and the same 30 and 40 more afterwards.
    /// let tasks: Vec<_> = (0..100).map(|task| vec![(task < 30, task < 70)]).collect();
    /// let change = SuccessDifference::paired(&tasks);
    /// assert!((change.difference - 0.4).abs() < 1e-12);
    /// assert!(change.ci_low > 0.28 && change.ci_high < 0.51);
    /// ```
    #[must_use]
    pub fn paired(tasks: &[Vec<(bool, bool)>]) -> Self {
        let of = |result: fn(&(bool, bool)) -> bool| -> Vec<Vec<bool>> {
            tasks.iter().map(|episodes| episodes.iter().map(result).collect()).collect()
        };
        let (before, after) =
            (SuccessRate::of(&of(|pair| pair.0)), SuccessRate::of(&of(|pair| pair.1)));
        Self { is_paired: true, ..combine(&before, &after, correlation(tasks, &before, &after)) }
    }

    /// Compares two evaluations that have no episodes in common.
    #[must_use]
    pub fn independent(before: &SuccessRate, after: &SuccessRate) -> Self {
        combine(before, after, 0.0)
    }

    /// Returns the smallest difference that these evaluations would have shown: the distance from the measured difference
    /// to the end of the interval on the side of 0. The interval is not symmetric, and a difference that it does not show
    /// is never above this number.
    ///
    /// ```
    /// use turnwise_training::SuccessDifference;
    ///
    /// let change = SuccessDifference::paired(&[vec![(false, false)], vec![(false, true)]]);
    /// assert!(change.ci_low <= 0.0 && change.difference <= change.detectable());
    /// ```
    #[must_use]
    pub fn detectable(&self) -> f64 {
        let (below, above) = (self.difference - self.ci_low, self.ci_high - self.difference);
        if self.difference > 0.0 {
            below
        } else if self.difference < 0.0 {
            above
        } else {
            below.max(above)
        }
    }

    /// Estimates the number of episodes for which a difference of `half_width` is [`detectable`](Self::detectable).
    #[must_use]
    #[expect(clippy::cast_sign_loss, reason = "a square is not negative")]
    pub fn episodes_for(&self, half_width: f64) -> usize {
        let factor = (self.detectable() / half_width).powi(2);
        (self.episodes as f64 * factor).ceil() as usize
    }
}

/// Combines the intervals of two rates with this correlation (Newcombe 1998, method 10 of both papers).
fn combine(before: &SuccessRate, after: &SuccessRate, correlation: f64) -> SuccessDifference {
    let difference = after.success_rate - before.success_rate;
    let reach = |fall: f64, rise: f64| {
        (fall * fall - 2.0 * correlation * fall * rise + rise * rise).max(0.0).sqrt()
    };
    let down = |rate: &SuccessRate| rate.success_rate - rate.ci_low;
    let up = |rate: &SuccessRate| rate.ci_high - rate.success_rate;
    SuccessDifference {
        before: before.success_rate,
        after: after.success_rate,
        difference,
        ci_low: (difference - reach(down(after), up(before))).max(-1.0),
        ci_high: (difference + reach(up(after), down(before))).min(1.0),
        episodes: before.episodes.min(after.episodes),
        is_paired: false,
    }
}

/// Returns the correlation of the two results over tasks.
fn correlation(tasks: &[Vec<(bool, bool)>], before: &SuccessRate, after: &SuccessRate) -> f64 {
    let played = tasks.iter().filter(|episodes| !episodes.is_empty()).count().max(1) as f64;
    let per_task = before.episodes as f64 / played;
    let excess = |of: fn(&(bool, bool)) -> bool, rate: f64, episodes: &[(bool, bool)]| {
        episodes.iter().map(|pair| f64::from(u8::from(of(pair))) - rate).sum::<f64>()
    };
    let (mut both, mut first, mut second) = (0.0, 0.0, 0.0);
    for episodes in tasks {
        let a = excess(|pair| pair.0, before.success_rate, episodes);
        let b = excess(|pair| pair.1, after.success_rate, episodes);
        both += a * b;
        first += a * a;
        second += b * b;
    }
    let corrected = if both > 0.0 { (both - per_task * per_task / 2.0).max(0.0) } else { both };
    let scale = (first * second).sqrt();
    if scale > 0.0 { corrected / scale } else { 0.0 }
}
