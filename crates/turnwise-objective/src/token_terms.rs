//! Objectives that are a sum over tokens: the pass over a sequence, and their shared terms.

use turnwise_kernels::lanes::LANES;
use turnwise_kernels::lanes::{F64x8, Vectorized, lanes, run_widest};

use crate::clip::Band;
use crate::log_ratio::{LogRatioSums, MAX_LOG_RATIO, capped_exps, padded};
use crate::sum::LaneSum;
use crate::{Advantages, Clip, ObjectiveError, Sequence, SequenceLoss, SequenceStats};

/// Eight tokens, the input of a term.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lanes {
    /// log π_θ.
    pub(crate) logprobs: [f64; LANES],
    /// log π_θ − log π_b.
    pub(crate) log_ratios: [f64; LANES],
    /// The ratio, clamped at e^[`MAX_LOG_RATIO`].
    pub(crate) ratios: [f64; LANES],
    /// A_t; 0 for padding.
    pub(crate) advantages: [f64; LANES],
}

/// The terms of eight tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    /// Each token's term of J.
    pub(crate) values: [f64; LANES],
    /// The derivative of the term with respect to log π_θ.
    pub(crate) gradient: [f64; LANES],
    /// Whether clipping removed the gradient, by bound.
    pub(crate) clipped_low: [bool; LANES],
    pub(crate) clipped_high: [bool; LANES],
    pub(crate) clipped_dual: [bool; LANES],
    /// Whether a detached weight was clipped.
    pub(crate) truncated: [bool; LANES],
    /// Whether the ratio in the gradient was clamped at e^[`MAX_LOG_RATIO`].
    pub(crate) capped: [bool; LANES],
}

/// A token's term of J and its derivative; both are 0 for advantage 0.
pub(crate) trait Term {
    fn of(&self, tokens: &Lanes) -> Terms;
}

/// Returns −weight · Σ_t term_t of a sequence with at least one token, and writes its gradient.
pub(crate) fn sum_terms(
    term: &impl Term,
    weight: f64,
    sequence: &Sequence<'_>,
    gradient: &mut [f64],
) -> Result<SequenceLoss, ObjectiveError> {
    run_widest(SumTerms { term, scale: -weight, sequence, gradient }).finish(sequence)
}

/// The pass over a sequence's terms. Terms are arrays, which the compiler keeps in registers.
struct SumTerms<'s, 'a, T> {
    term: &'s T,
    scale: f64,
    sequence: &'s Sequence<'a>,
    gradient: &'s mut [f64],
}

impl<T: Term> Vectorized for SumTerms<'_, '_, T> {
    type Output = TermSums;

    #[inline(always)]
    fn run<V: F64x8>(self) -> TermSums {
        let mut sums = TermSums::new(self.scale);
        sums.add_all(self.term, self.sequence, self.gradient);
        sums
    }
}

/// The sums over the tokens that the pass has read so far.
#[derive(Debug)]
struct TermSums {
    /// ∂loss/∂(one term).
    scale: f64,
    log_ratios: LogRatioSums,
    sum: LaneSum,
    n_with_advantage: [u64; LANES],
    n_clipped_low: [u64; LANES],
    n_clipped_high: [u64; LANES],
    n_clipped_dual: [u64; LANES],
    n_truncated: [u64; LANES],
    n_capped: [u64; LANES],
}

impl TermSums {
    #[inline(always)]
    fn new(scale: f64) -> Self {
        let none = [0; LANES];
        Self {
            scale,
            log_ratios: LogRatioSums::zero(),
            sum: LaneSum::zero(),
            n_with_advantage: none,
            n_clipped_low: none,
            n_clipped_high: none,
            n_clipped_dual: none,
            n_truncated: none,
            n_capped: none,
        }
    }

    /// Passes over all tokens of a sequence, eight at a time.
    #[inline(always)]
    fn add_all(&mut self, term: &impl Term, sequence: &Sequence<'_>, gradient: &mut [f64]) {
        let (logprobs, logprob_rest) = sequence.logprobs().as_chunks::<LANES>();
        let (behavior_logprobs, behavior_rest) = sequence.behavior_logprobs().as_chunks::<LANES>();
        let (slots, slot_rest) = gradient.as_chunks_mut::<LANES>();
        for (chunk, slots) in slots.iter_mut().enumerate() {
            let advantages = match sequence.advantages() {
                Advantages::Uniform(advantage) => [advantage; LANES],
                Advantages::PerToken(advantages) => advantages.as_chunks().0[chunk],
            };
            *slots = self.add(term, &logprobs[chunk], &behavior_logprobs[chunk], advantages);
        }
        // The padding has advantage 0, which adds 0 to every sum.
        let mut advantages = [0.0; LANES];
        match sequence.advantages() {
            Advantages::Uniform(advantage) => advantages[..slot_rest.len()].fill(advantage),
            Advantages::PerToken(all) => advantages = padded(&all[all.len() - slot_rest.len()..]),
        }
        let last = self.add(term, &padded(logprob_rest), &padded(behavior_rest), advantages);
        slot_rest.copy_from_slice(&last[..slot_rest.len()]);
    }

    /// Adds eight tokens and returns their gradient.
    #[inline(always)]
    fn add(
        &mut self,
        term: &impl Term,
        logprobs: &[f64; LANES],
        behavior_logprobs: &[f64; LANES],
        advantages: [f64; LANES],
    ) -> [f64; LANES] {
        let log_ratios = logprobs.minus(*behavior_logprobs);
        let k3 = self.log_ratios.add(log_ratios);
        let ratios = capped_exps(&log_ratios, &k3);
        let terms = term.of(&Lanes { logprobs: *logprobs, log_ratios, ratios, advantages });
        for (lane, &advantage) in advantages.iter().enumerate() {
            self.n_with_advantage[lane] += u64::from(advantage != 0.0);
            self.n_clipped_low[lane] += u64::from(terms.clipped_low[lane]);
            self.n_clipped_high[lane] += u64::from(terms.clipped_high[lane]);
            self.n_clipped_dual[lane] += u64::from(terms.clipped_dual[lane]);
            self.n_truncated[lane] += u64::from(terms.truncated[lane]);
            self.n_capped[lane] += u64::from(terms.capped[lane]);
        }
        self.sum.add(terms.values);
        lanes(|lane| self.scale * terms.gradient[lane])
    }

    fn finish(&self, sequence: &Sequence<'_>) -> Result<SequenceLoss, ObjectiveError> {
        let log_ratios = self.log_ratios.finish(sequence).checked(sequence)?;
        let count = |lanes: &[u64; LANES]| lanes.iter().sum::<u64>() as usize;
        let stats = SequenceStats {
            n_tokens: sequence.len(),
            n_with_advantage: count(&self.n_with_advantage),
            n_clipped_low: count(&self.n_clipped_low),
            n_clipped_high: count(&self.n_clipped_high),
            n_clipped_dual: count(&self.n_clipped_dual),
            n_truncated: count(&self.n_truncated),
            n_capped: count(&self.n_capped),
            log_ratio: log_ratios.mean,
            k3_sum: log_ratios.k3_sum,
            ..SequenceStats::default()
        };
        Ok(SequenceLoss { loss: self.scale * self.sum.total(), stats })
    }
}

/// min(r A, clip(r) A): the term of GRPO, DAPO and Dr.GRPO.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClippedRatio(Band);

impl From<Clip> for ClippedRatio {
    fn from(clip: Clip) -> Self {
        Self(clip.into())
    }
}

impl Term for ClippedRatio {
    #[inline(always)]
    fn of(&self, tokens: &Lanes) -> Terms {
        let band = &self.0;
        let (below, above) = band.sides(&tokens.log_ratios);
        let mut terms = Terms::default();
        for lane in 0..LANES {
            let (ratio, advantage) = (tokens.ratios[lane], tokens.advantages[lane]);
            let log_ratio = tokens.log_ratios[lane];
            // The loop has no branches, because the signs of advantages are unpredictable.
            let low = (advantage < 0.0) & below[lane];
            let high = (advantage > 0.0) & above[lane];
            let beyond_dual = band.is_beyond_dual(log_ratio);
            let dual = (advantage < 0.0) & beyond_dual;
            let (is_large, stays) = (log_ratio > MAX_LOG_RATIO, !dual);
            let raised = if low { band.low } else { ratio };
            let bounded = if high { band.high } else { raised };
            let kept = if low | high | dual { 0.0 } else { ratio };
            terms.values[lane] = if dual { band.dual } else { bounded } * advantage;
            terms.gradient[lane] = kept * advantage;
            terms.clipped_low[lane] = low;
            terms.clipped_high[lane] = high;
            terms.clipped_dual[lane] = dual;
            terms.capped[lane] = (advantage < 0.0) & is_large & stays;
        }
        terms
    }
}

/// The bound at which log π_θ is clamped in a *value* that contains log π_θ itself, so that the
/// loss stays finite for a token that has become impossible. No gradient contains it.
const LOWEST_LOGPROB: f64 = -1e6;

/// Returns weight · A · log π_θ with a detached weight: the term of REINFORCE and CISPO.
#[inline(always)]
pub(crate) fn weighted_logprob(weight: f64, advantage: f64, logprob: f64) -> (f64, f64) {
    let gradient = weight * advantage;
    (gradient * logprob.max(LOWEST_LOGPROB), gradient)
}
