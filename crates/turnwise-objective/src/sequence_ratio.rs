//! One clipped ratio for a whole sequence, shared by GSPO and GSPO-token.

use crate::clip::Band;
use crate::log_ratio::{LogRatios, MAX_LOG_RATIO, capped_exp, log_ratios};
use crate::{Clip, ObjectiveError, Sequence, SequenceLoss, SequenceStats};

/// The ratio of a non-empty sequence, clipped on each side, and the weight of the sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SequenceRatio {
    n_tokens: usize,
    weight: f64,
    log_ratios: LogRatios,
    /// s_i, clamped at e^[`MAX_LOG_RATIO`].
    ratio: f64,
    /// m₋ = max(s, 1 − ε_l), at most the dual clip's bound: the factor of a negative advantage.
    raised: f64,
    /// m₊ = min(s, 1 + ε_h), the factor of a positive advantage.
    lowered: f64,
    is_below: bool,
    is_above: bool,
    is_beyond_dual: bool,
}

/// The advantages of a sequence, split by sign.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SignedAdvantages {
    /// (1/n_i) Σ_t max(A_t, 0).
    pub(crate) positive_mean: f64,
    /// (1/n_i) Σ_t max(−A_t, 0).
    pub(crate) negative_mean: f64,
    pub(crate) n_positive: usize,
    pub(crate) n_negative: usize,
}

impl SignedAdvantages {
    /// Returns the credit of `n_tokens` tokens with the same advantage.
    pub(crate) fn uniform(advantage: f64, n_tokens: usize) -> Self {
        if advantage > 0.0 {
            Self { positive_mean: advantage, n_positive: n_tokens, ..Self::default() }
        } else if advantage < 0.0 {
            Self { negative_mean: -advantage, n_negative: n_tokens, ..Self::default() }
        } else {
            Self { positive_mean: advantage, ..Self::default() } // 0, or NaN to be found out
        }
    }
}

impl SequenceRatio {
    /// Creates the ratio of a sequence with at least one token, whose mean over tokens weighs w_i.
    pub(crate) fn new(
        sequence: &Sequence<'_>,
        clip: Clip,
        weight: f64,
    ) -> Result<Self, ObjectiveError> {
        let log_ratios = log_ratios(sequence)?;
        let (band, ratio) = (Band::from(clip), capped_exp(log_ratios.mean));
        let (is_below, is_above) = (band.is_below(log_ratios.mean), band.is_above(log_ratios.mean));
        let is_beyond_dual = band.is_beyond_dual(log_ratios.mean);
        let raised = if is_below { band.low } else { ratio };
        Ok(Self {
            n_tokens: sequence.len(),
            weight,
            log_ratios,
            ratio,
            raised: if is_beyond_dual { band.dual } else { raised },
            lowered: if is_above { band.high } else { ratio },
            is_below,
            is_above,
            is_beyond_dual,
        })
    }

    /// Returns ∂loss/∂log π_t per unit of a positive and of a negative advantage: −(w_i/n_i)·s_i,
    /// or 0 if clipping removes it.
    pub(crate) fn gradient_per_advantage(&self) -> (f64, f64) {
        let unclipped = -self.weight / self.n_tokens as f64 * self.ratio;
        let (positive, negative) = (self.is_above, self.is_below | self.is_beyond_dual);
        (if positive { 0.0 } else { unclipped }, if negative { 0.0 } else { unclipped })
    }

    /// Returns Σ_t (log π_θ − log π_b).
    pub(crate) fn log_ratio_sum(&self) -> f64 {
        self.log_ratios.sum
    }

    /// Returns −w_i·(m₊·mean A⁺ − m₋·mean A⁻), with its statistics.
    pub(crate) fn loss(&self, credit: &SignedAdvantages) -> SequenceLoss {
        let value = self.lowered * credit.positive_mean - self.raised * credit.negative_mean;
        let is_capped = self.log_ratios.mean > MAX_LOG_RATIO && !self.is_beyond_dual;
        let stats = SequenceStats {
            n_tokens: self.n_tokens,
            n_with_advantage: credit.n_positive + credit.n_negative,
            n_clipped_low: if self.is_below { credit.n_negative } else { 0 },
            n_clipped_high: if self.is_above { credit.n_positive } else { 0 },
            n_clipped_dual: if self.is_beyond_dual { credit.n_negative } else { 0 },
            n_capped: if is_capped { credit.n_negative } else { 0 },
            log_ratio: self.log_ratios.mean,
            k3_sum: self.log_ratios.k3_sum,
            gap: (self.raised - self.lowered) * credit.positive_mean.min(credit.negative_mean),
            ..SequenceStats::default()
        };
        SequenceLoss { loss: -self.weight * value, stats }
    }
}
