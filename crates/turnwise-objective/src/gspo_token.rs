//! GSPO-token.

use turnwise_kernels::lanes::LANES;
use turnwise_kernels::lanes::{F64x8, Vectorized, run_widest};

use crate::gspo::evaluate_uniform;
use crate::log_ratio::padded;
use crate::objective::evaluate_tokens;
use crate::sequence_ratio::{SequenceRatio, SignedAdvantages};
use crate::sum::LaneSum;
use crate::{
    Advantages, Clip, Denominator, LengthWeight, Objective, ObjectiveError, Sequence, SequenceLoss,
};

/// GSPO-token: the sequence's ratio, each token's own advantage (arXiv 2507.18071, section 4.3).
///
/// ```text
/// J    = mean_i (1/n_i) Σ_t min( s_it A_it, clip(s_it, 1−ε_l, 1+ε_h) A_it )     (13)
/// s_it = sg[s_i] · π_θ(y_t) / sg[π_θ(y_t)]                                      (14)
/// ∇J   = mean_i (s_i/n_i) Σ_t A_it a_it ∇log π_θ(y_t)                           (17)
/// a_it = [s_i ≤ 1+ε_h] if A_it > 0, [s_i ≥ 1−ε_l] if A_it < 0
/// ```
///
/// s_i is detached: no token's gradient depends on the advantage of another. Therefore the gradient
/// is not the derivative of the value, and a finite difference of the value disagrees with it
/// unless the advantages are uniform.
///
/// A token with A_t = 0 has no gradient but counts in n_i and in s_i.
///
/// ```
/// use turnwise_objective::{Advantages, Clip, GspoToken, LengthWeight, Objective, Sequence};
///
/// let gspo_token = GspoToken { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Mean };
/// let credit = [1.0, 0.0, -1.0];
/// // The sequence's ratio is above the range: only tokens with a negative advantage have a gradient.
/// let sequence = Sequence::new(&[-0.5; 3], &[-0.75; 3], Advantages::PerToken(&credit))?;
/// let mut gradient = [0.0; 3];
/// gspo_token.evaluate(&sequence, &mut gradient)?;
/// assert_eq!(gradient[..2], [0.0, 0.0]);
/// assert!((gradient[2] - 0.25_f64.exp() / 3.0).abs() < 1e-15);
/// # Ok::<(), turnwise_objective::ObjectiveError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GspoToken {
    /// The range of s_i; the paper's is [`Clip::PAPER_GSPO`].
    pub clip: Clip,
    /// The weight of a sequence by its length; the paper's is [`LengthWeight::Mean`].
    pub length_weight: LengthWeight,
}

impl Objective for GspoToken {
    fn name(&self) -> &'static str {
        "gspo_token"
    }

    fn denominator(&self) -> Denominator {
        Denominator::Sequences
    }

    fn token_weight(&self, n_tokens: usize) -> f64 {
        self.length_weight.of(n_tokens) / n_tokens as f64
    }

    fn set_clip(&mut self, clip: Clip) -> bool {
        self.clip = clip.with_dual_of(self.clip);
        true
    }

    fn evaluate(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError> {
        self.evaluate_scaled(sequence, gradient, 1.0)
    }

    fn evaluate_scaled(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
        scale: f64,
    ) -> Result<SequenceLoss, ObjectiveError> {
        evaluate_tokens(sequence, gradient, |gradient| {
            let weight = self.length_weight.of(sequence.len());
            let ratio = SequenceRatio::new(sequence, self.clip, weight)?;
            Ok(evaluate_ratio(&ratio, sequence.advantages(), scale, gradient))
        })
    }
}

/// Returns the loss of tokens that share a ratio, and writes their gradient times `scale`.
pub(crate) fn evaluate_ratio(
    ratio: &SequenceRatio,
    advantages: Advantages<'_>,
    scale: f64,
    gradient: &mut [f64],
) -> SequenceLoss {
    match advantages {
        Advantages::Uniform(advantage) => evaluate_uniform(ratio, advantage, scale, gradient),
        Advantages::PerToken(advantages) => {
            let (positive, negative) = ratio.gradient_per_advantage();
            let pass = WriteBySign { advantages, positive, negative, scale, gradient };
            ratio.loss(&run_widest(pass))
        }
    }
}

/// The pass that writes the gradient and sums the advantages by sign.
struct WriteBySign<'a> {
    advantages: &'a [f64],
    /// ∂loss/∂log π_t per unit of a positive advantage.
    positive: f64,
    /// ∂loss/∂log π_t per unit of a negative advantage.
    negative: f64,
    /// A factor of its own, so that an entry has the bits of one that is scaled later.
    scale: f64,
    gradient: &'a mut [f64],
}

impl Vectorized for WriteBySign<'_> {
    type Output = SignedAdvantages;

    #[inline(always)]
    fn run<V: F64x8>(self) -> SignedAdvantages {
        let (positive, negative) = (V::splat(self.positive), V::splat(self.negative));
        let scale = V::splat(self.scale);
        let gradient_of = |advantages: V| {
            advantages.times(advantages.select_positive(positive, negative)).times(scale)
        };
        let mut sums = SignSums::<V>::zero();
        let (chunks, rest) = self.advantages.as_chunks::<LANES>();
        let (slots, slot_rest) = self.gradient.as_chunks_mut::<LANES>();
        let (blocks, chunk_rest) = chunks.as_chunks::<BLOCK>();
        let (slot_blocks, slots) = slots.as_chunks_mut::<BLOCK>();
        for (slots, block) in slot_blocks.iter_mut().zip(blocks) {
            let mut read = [V::zero(); BLOCK];
            for ((slots, chunk), read) in slots.iter_mut().zip(block).zip(&mut read) {
                V::ask_ahead(chunk);
                V::ask_ahead(slots);
                *read = V::load(chunk);
                gradient_of(*read).store(slots);
            }
            sums.add(read);
        }
        for (slots, chunk) in slots.iter_mut().zip(chunk_rest) {
            let advantages = V::load(chunk);
            gradient_of(advantages).store(slots);
            sums.add([advantages]);
        }
        if !rest.is_empty() {
            let advantages = V::load(&padded(rest));
            slot_rest.copy_from_slice(&gradient_of(advantages).stored()[..rest.len()]);
            sums.add([advantages]);
        }
        sums.credit(self.advantages.len())
    }
}

/// The number of vectors that [`SignSums`] adds at a time.
const BLOCK: usize = 4;

/// [`SignedAdvantages`] of the tokens that the pass has read so far.
struct SignSums<V> {
    positive: LaneSum<V>,
    negative: LaneSum<V>,
    n_positive: u64,
    n_negative: u64,
}

impl<V: F64x8> SignSums<V> {
    #[inline(always)]
    fn zero() -> Self {
        let zero = LaneSum::zero();
        Self { positive: zero, negative: zero, n_positive: 0, n_negative: 0 }
    }

    /// Adds vectors of advantages. Numbers of one sign do not cancel, so that they can be added to each other first:
    /// N − 1 roundings more, and one compensated addition instead of N.
    #[inline(always)]
    fn add<const N: usize>(&mut self, block: [V; N]) {
        let (mut positives, mut negatives) = (V::zero(), V::zero());
        for advantages in block {
            let positive = advantages.select_positive(advantages, V::zero());
            positives = positives.plus(positive);
            // The negative part is a difference, so that a number that is not finite reaches a sum.
            negatives = negatives.plus(positive.minus(advantages));
            self.n_positive += u64::from(advantages.count_above(V::zero()));
            self.n_negative += u64::from(V::zero().count_above(advantages));
        }
        self.positive.add(positives);
        self.negative.add(negatives);
    }

    #[inline(always)]
    fn credit(&self, n_tokens: usize) -> SignedAdvantages {
        let n = n_tokens as f64;
        SignedAdvantages {
            positive_mean: self.positive.total() / n,
            negative_mean: self.negative.total() / n,
            n_positive: self.n_positive as usize,
            n_negative: self.n_negative as usize,
        }
    }
}
