//! Group Relative Policy Optimization, the objective GSPO is compared with.

use crate::clip::Band;
use crate::log_ratio::{LogRatioSums, LogRatios, MAX_LOG_RATIO, capped_exps, difference, padded};
use crate::sequence::expect_length;
use crate::sum::{LANES, LaneSum};
use crate::{
    Advantages, Clip, Denominator, Objective, ObjectiveError, Sequence, SequenceLoss, SequenceStats,
};

/// GRPO: a ratio per token, mean over the tokens of a sequence, then mean over sequences (arXiv
/// 2402.03300; here without KL term, as in arXiv 2507.18071, eq. 2 and 3).
///
/// ```text
/// J   = mean_i (1/n_i) Σ_t min( r_t A_t, clip(r_t, 1−ε_l, 1+ε_h) A_t )
/// r_t = π_θ(y_t) / π_b(y_t)
/// ∇J  = mean_i (1/n_i) Σ_t r_t A_t a_t ∇log π_θ(y_t)
/// ```
///
/// ```
/// use turnwise_objective::{Advantages, Clip, Grpo, Objective, Sequence};
///
/// let grpo = Grpo { clip: Clip::PAPER_GRPO };
/// // Two tokens drift apart: each ratio is clipped by itself, although their mean log ratio is 0.
/// let sequence = Sequence::new(&[-0.5, -1.5], &[-1.0, -1.0], Advantages::Uniform(1.0))?;
/// let mut gradient = [0.0; 2];
/// grpo.evaluate(&sequence, &mut gradient)?;
/// assert_eq!(gradient[0], 0.0);
/// assert!(gradient[1] < 0.0);
/// # Ok::<(), turnwise_objective::ObjectiveError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grpo {
    /// The range of r_t; the GSPO paper's baseline is [`Clip::PAPER_GRPO`].
    pub clip: Clip,
}

impl Objective for Grpo {
    fn name(&self) -> &'static str {
        "grpo"
    }

    fn denominator(&self) -> Denominator {
        Denominator::Sequences
    }

    fn evaluate(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError> {
        expect_length("gradient", sequence.len(), gradient.len())?;
        if sequence.is_empty() {
            return Ok(SequenceLoss::default());
        }
        let mut terms = TokenTerms::new(self.clip, -1.0 / sequence.len() as f64);
        terms.run(sequence, gradient);
        terms.loss(&terms.log_ratios.finish(sequence)?, sequence.len()).checked(sequence)
    }
}

/// Σ_t min(r_t A_t, clip(r_t) A_t) and its counts, as far as the pass over the tokens has come.
#[derive(Debug)]
struct TokenTerms {
    band: Band,
    /// ∂loss/∂(one term): −1/n_i.
    scale: f64,
    log_ratios: LogRatioSums,
    sum: LaneSum,
    n_with_advantage: [u64; LANES],
    n_clipped_low: [u64; LANES],
    n_clipped_high: [u64; LANES],
    n_capped: [u64; LANES],
}

impl TokenTerms {
    fn new(clip: Clip, scale: f64) -> Self {
        Self {
            band: clip.into(),
            scale,
            log_ratios: LogRatioSums::default(),
            sum: LaneSum::default(),
            n_with_advantage: [0; LANES],
            n_clipped_low: [0; LANES],
            n_clipped_high: [0; LANES],
            n_capped: [0; LANES],
        }
    }

    /// Passes over all the tokens of a sequence, eight at a time.
    fn run(&mut self, sequence: &Sequence<'_>, gradient: &mut [f64]) {
        let (logprobs, logprob_rest) = sequence.logprobs().as_chunks::<LANES>();
        let (behavior_logprobs, behavior_rest) = sequence.behavior_logprobs().as_chunks::<LANES>();
        let (slots, slot_rest) = gradient.as_chunks_mut::<LANES>();
        for (chunk, slots) in slots.iter_mut().enumerate() {
            let advantages = match sequence.advantages() {
                Advantages::Uniform(advantage) => [advantage; LANES],
                Advantages::PerToken(advantages) => advantages.as_chunks().0[chunk],
            };
            *slots =
                self.add(&difference(&logprobs[chunk], &behavior_logprobs[chunk]), &advantages);
        }
        // The padding has advantage 0, which adds nothing to any sum.
        let mut advantages = [0.0; LANES];
        match sequence.advantages() {
            Advantages::Uniform(advantage) => advantages[..slot_rest.len()].fill(advantage),
            Advantages::PerToken(all) => advantages = padded(&all[all.len() - slot_rest.len()..]),
        }
        let last =
            self.add(&difference(&padded(logprob_rest), &padded(behavior_rest)), &advantages);
        slot_rest.copy_from_slice(&last[..slot_rest.len()]);
    }

    /// Adds eight tokens and returns their gradient.
    #[inline]
    fn add(&mut self, log_ratios: &[f64; LANES], advantages: &[f64; LANES]) -> [f64; LANES] {
        let (below, above) = self.band.sides(log_ratios);
        let k3 = self.log_ratios.add(log_ratios);
        let ratios = capped_exps(log_ratios, &k3);
        let (mut terms, mut gradient) = ([0.0; LANES], [0.0; LANES]);
        for lane in 0..LANES {
            let (ratio, advantage) = (ratios[lane], advantages[lane]);
            // Without branches: the signs of advantages are as good as random.
            let clipped_low = (advantage < 0.0) & below[lane];
            let clipped_high = (advantage > 0.0) & above[lane];
            let raised = if clipped_low { self.band.low } else { ratio };
            let bounded = if clipped_high { self.band.high } else { raised };
            let kept = if clipped_low | clipped_high { 0.0 } else { ratio };
            terms[lane] = bounded * advantage;
            gradient[lane] = self.scale * kept * advantage;
            self.n_with_advantage[lane] += u64::from(advantage != 0.0);
            self.n_clipped_low[lane] += u64::from(clipped_low);
            self.n_clipped_high[lane] += u64::from(clipped_high);
            let is_capped = log_ratios[lane] > MAX_LOG_RATIO;
            self.n_capped[lane] += u64::from((advantage < 0.0) & is_capped);
        }
        self.sum.add(terms);
        gradient
    }

    fn loss(&self, log_ratios: &LogRatios, n_tokens: usize) -> SequenceLoss {
        let count = |lanes: &[u64; LANES]| lanes.iter().sum::<u64>() as usize;
        let stats = SequenceStats {
            n_tokens,
            n_with_advantage: count(&self.n_with_advantage),
            n_clipped_low: count(&self.n_clipped_low),
            n_clipped_high: count(&self.n_clipped_high),
            n_capped: count(&self.n_capped),
            log_ratio: log_ratios.mean,
            k3_sum: log_ratios.k3_sum,
            gap: 0.0,
        };
        SequenceLoss { loss: self.scale * self.sum.total(), stats }
    }
}
