//! Statistics of the ratios of a step.

use crate::sum::Sum;
use crate::{Clip, SequenceLoss};

/// Counts and means over the sequences recorded so far.
///
/// Every number is defined for an empty record (0, or `None`). Micro-batches are recorded one after
/// the other, or separately and then [merged](Metrics::merge). "Sequences" are non-empty ones.
///
/// ```
/// use turnwise_objective::{Advantages, Clip, Gspo, LengthWeight, Metrics, Objective, Sequence};
///
/// let gspo = Gspo { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Mean };
/// let mut metrics = Metrics::default();
/// for drift in [-0.001, 0.0, 0.001] {
///     let logprobs = [-1.0 + drift; 4];
///     let sequence = Sequence::new(&logprobs, &[-1.0; 4], Advantages::Uniform(1.0))?;
///     metrics.record(&gspo.evaluate(&sequence, &mut [0.0; 4])?);
/// }
/// assert_eq!(metrics.clip_fraction_by_token().high, 1.0 / 3.0);
/// assert_eq!(metrics.clip_fraction_by_token().low, 0.0);
/// assert!((metrics.log_ratio_std() - 8.165e-4).abs() < 1e-7);
/// # Ok::<(), turnwise_objective::ObjectiveError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    n_sequences: usize,
    n_empty: usize,
    n_tokens: usize,
    n_with_advantage: usize,
    n_clipped_low: usize,
    n_clipped_high: usize,
    n_clipped_dual: usize,
    n_truncated: usize,
    n_capped_tokens: usize,
    n_capped_sequences: usize,
    n_gap_live: usize,
    clipped_low_shares: Sum,
    clipped_high_shares: Sum,
    clipped_dual_shares: Sum,
    kl: Sum,
    gap: Sum,
    k3: Sum,
    log_ratio: Moments,
    weights: Weights,
}

/// The share of gradients that clipping removed, by bound; each is at least 0, and their sum is at
/// most 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipFraction {
    /// Below 1 − ε_l with a negative advantage.
    pub low: f64,
    /// Above 1 + ε_h with a positive advantage.
    pub high: f64,
    /// Above the dual clip's bound with a negative advantage.
    pub dual: f64,
}

impl ClipFraction {
    /// Returns the share over all bounds.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.low + self.high + self.dual
    }
}

impl Metrics {
    /// Adds one evaluated sequence.
    pub fn record(&mut self, evaluated: &SequenceLoss) {
        let stats = &evaluated.stats;
        if stats.n_tokens == 0 {
            self.n_empty += 1;
            return;
        }
        let n = stats.n_tokens as f64;
        self.n_sequences += 1;
        self.n_tokens += stats.n_tokens;
        self.n_with_advantage += stats.n_with_advantage;
        self.n_clipped_low += stats.n_clipped_low;
        self.n_clipped_high += stats.n_clipped_high;
        self.n_clipped_dual += stats.n_clipped_dual;
        self.n_truncated += stats.n_truncated;
        self.n_capped_tokens += stats.n_capped;
        self.n_capped_sequences += usize::from(stats.n_capped > 0);
        self.n_gap_live += usize::from(stats.gap > 0.0);
        self.clipped_low_shares.add(stats.n_clipped_low as f64 / n);
        self.clipped_high_shares.add(stats.n_clipped_high as f64 / n);
        self.clipped_dual_shares.add(stats.n_clipped_dual as f64 / n);
        self.kl.add(stats.kl_sum);
        self.gap.add(stats.gap);
        self.k3.add(stats.k3_sum);
        self.weights.add(stats.log_ratio);
        if stats.log_ratio.is_finite() {
            self.log_ratio.merge(&Moments { n: 1, mean: stats.log_ratio, squares: 0.0 });
        }
    }

    /// Adds the records of another value.
    pub fn merge(&mut self, other: &Self) {
        self.n_sequences += other.n_sequences;
        self.n_empty += other.n_empty;
        self.n_tokens += other.n_tokens;
        self.n_with_advantage += other.n_with_advantage;
        self.n_clipped_low += other.n_clipped_low;
        self.n_clipped_high += other.n_clipped_high;
        self.n_clipped_dual += other.n_clipped_dual;
        self.n_truncated += other.n_truncated;
        self.n_capped_tokens += other.n_capped_tokens;
        self.n_capped_sequences += other.n_capped_sequences;
        self.n_gap_live += other.n_gap_live;
        self.clipped_low_shares.merge(other.clipped_low_shares);
        self.clipped_high_shares.merge(other.clipped_high_shares);
        self.clipped_dual_shares.merge(other.clipped_dual_shares);
        self.kl.merge(other.kl);
        self.gap.merge(other.gap);
        self.k3.merge(other.k3);
        self.log_ratio.merge(&other.log_ratio);
        self.weights.merge(&other.weights);
    }

    /// Returns the number of sequences with at least one token.
    #[must_use]
    pub fn n_sequences(&self) -> usize {
        self.n_sequences
    }

    /// Returns the number of sequences without a token, which no other number counts.
    #[must_use]
    pub fn n_empty(&self) -> usize {
        self.n_empty
    }

    /// Returns the number of tokens of all sequences.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Returns the mean of n_i.
    #[must_use]
    pub fn tokens_per_sequence(&self) -> f64 {
        ratio(self.n_tokens as f64, self.n_sequences)
    }

    /// Returns the share of tokens with A_t ≠ 0.
    #[must_use]
    pub fn advantage_fraction(&self) -> f64 {
        ratio(self.n_with_advantage as f64, self.n_tokens)
    }

    /// Returns the mean of log s_i over the sequences with a finite log s_i.
    #[must_use]
    pub fn log_ratio_mean(&self) -> f64 {
        self.log_ratio.mean
    }

    /// Returns the standard deviation (divisor n) of log s_i over the sequences with a finite log
    /// s_i.
    #[must_use]
    pub fn log_ratio_std(&self) -> f64 {
        ratio(self.log_ratio.squares, self.log_ratio.n).sqrt()
    }

    /// Returns the number of sequences with log s_i = −∞: the policy has made one of their tokens
    /// impossible.
    #[must_use]
    pub fn n_impossible(&self) -> usize {
        self.n_sequences - self.log_ratio.n
    }

    /// Returns half the width of the clip range in units of the standard deviation of log s_i;
    /// `None` if that deviation is 0.
    ///
    /// Far below 1, noise alone clips most sequences; far above 1, clipping has no effect. ε is
    /// meaningful only relative to this standard deviation.
    #[must_use]
    pub fn window_over_std(&self, clip: Clip) -> Option<f64> {
        let std = self.log_ratio_std();
        (std > 0.0).then(|| clip.log_width() / 2.0 / std)
    }

    /// Returns the share of tokens whose gradient clipping removed.
    #[must_use]
    pub fn clip_fraction_by_token(&self) -> ClipFraction {
        let share = |n_clipped: usize| ratio(n_clipped as f64, self.n_tokens);
        ClipFraction {
            low: share(self.n_clipped_low),
            high: share(self.n_clipped_high),
            dual: share(self.n_clipped_dual),
        }
    }

    /// Returns the mean over sequences of the share of their tokens whose gradient clipping
    /// removed.
    #[must_use]
    pub fn clip_fraction_by_sequence(&self) -> ClipFraction {
        let share = |shares: Sum| ratio(shares.total(), self.n_sequences);
        ClipFraction {
            low: share(self.clipped_low_shares),
            high: share(self.clipped_high_shares),
            dual: share(self.clipped_dual_shares),
        }
    }

    /// Returns the share of tokens whose detached weight was clipped (CISPO); such tokens keep
    /// their gradient.
    #[must_use]
    pub fn truncated_fraction(&self) -> f64 {
        ratio(self.n_truncated as f64, self.n_tokens)
    }

    /// Returns the mean per token of the estimate of KL(π_θ ‖ π_ref) in nats; 0 without a KL term.
    #[must_use]
    pub fn kl_mean(&self) -> f64 {
        ratio(self.kl.total(), self.n_tokens)
    }

    /// Returns the number of tokens with a gradient in which the ratio was clamped at
    /// e^[`MAX_LOG_RATIO`](crate::MAX_LOG_RATIO).
    #[must_use]
    pub fn n_capped_tokens(&self) -> usize {
        self.n_capped_tokens
    }

    /// Returns the number of sequences with a clamped token.
    #[must_use]
    pub fn n_capped_sequences(&self) -> usize {
        self.n_capped_sequences
    }

    /// Returns the share of sequences in which GSPO-token and GSPO with the mean advantage differ
    /// in value: out of range, with advantages of both signs.
    #[must_use]
    pub fn gap_live_fraction(&self) -> f64 {
        ratio(self.n_gap_live as f64, self.n_sequences)
    }

    /// Returns the mean over sequences of the difference in value between the two objectives; see
    /// [`SequenceStats::gap`](crate::SequenceStats::gap).
    #[must_use]
    pub fn gap_mean(&self) -> f64 {
        ratio(self.gap.total(), self.n_sequences)
    }

    /// Returns k3 per token, an estimate of KL(π_b ‖ π_θ) in nats, at least 0.
    #[must_use]
    pub fn k3_mean(&self) -> f64 {
        ratio(self.k3.total(), self.n_tokens)
    }

    /// Returns the effective sample size (Σ s_i)² / Σ s_i², between 1 and the number of sequences.
    #[must_use]
    pub fn effective_sample_size(&self) -> f64 {
        if self.weights.squares > 0.0 {
            self.weights.sum * self.weights.sum / self.weights.squares
        } else {
            0.0
        }
    }
}

/// Returns a/n, or 0 for n = 0.
fn ratio(a: f64, n: usize) -> f64 {
    if n == 0 { 0.0 } else { a / n as f64 }
}

/// Count, mean and Σ(x − mean)², merged by the formula of Chan, Golub and LeVeque.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Moments {
    n: usize,
    mean: f64,
    squares: f64,
}

impl Moments {
    fn merge(&mut self, other: &Self) {
        if other.n == 0 {
            return;
        }
        let (n, share) = (self.n as f64, other.n as f64 / (self.n + other.n) as f64);
        let difference = other.mean - self.mean;
        self.mean += difference * share;
        self.squares += other.squares + difference * difference * n * share;
        self.n += other.n;
    }
}

/// Σ s_i and Σ s_i² in units of the largest s_i, which itself may overflow.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Weights {
    log_max: f64,
    sum: f64,
    squares: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { log_max: f64::NEG_INFINITY, sum: 0.0, squares: 0.0 }
    }
}

impl Weights {
    fn add(&mut self, log_weight: f64) {
        self.merge(&Self { log_max: log_weight, sum: 1.0, squares: 1.0 });
    }

    fn merge(&mut self, other: &Self) {
        let log_max = self.log_max.max(other.log_max);
        if log_max == f64::NEG_INFINITY {
            return;
        }
        let (scale, other_scale) =
            ((self.log_max - log_max).exp(), (other.log_max - log_max).exp());
        self.sum = self.sum * scale + other.sum * other_scale;
        self.squares = self.squares * scale * scale + other.squares * other_scale * other_scale;
        self.log_max = log_max;
    }
}
