//! Group Sequence Policy Optimization.

use crate::objective::evaluate_tokens;
use crate::sequence_ratio::{SequenceRatio, SignedAdvantages};
use crate::{
    Advantages, Clip, Denominator, LengthWeight, Objective, ObjectiveError, Sequence, SequenceLoss,
};

/// GSPO: one ratio and one advantage per sequence (arXiv 2507.18071, section 4.1).
///
/// ```text
/// J   = mean_i min( s_i A_i, clip(s_i, 1−ε_l, 1+ε_h) A_i )                       (5)
/// s_i = exp( (1/n_i) Σ_t [log π_θ(y_t) − log π_b(y_t)] )                         (7)
/// ∇J  = mean_i s_i A_i (1/n_i) Σ_t ∇log π_θ(y_t)   where unclipped, else 0      (10)
/// ```
///
/// The gradient flows through s_i. If advantages differed inside a sequence, every token would get
/// their mean, so such advantages are rejected; use [`GspoToken`](crate::GspoToken) for them. With
/// uniform advantages the two objectives are equal.
///
/// ```
/// use turnwise_objective::{
///     Advantages, Clip, Gspo, LengthWeight, Objective, ObjectiveError, Sequence,
/// };
///
/// let gspo = Gspo { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Mean };
/// let (logprobs, behavior_logprobs) = ([-0.9, -1.1], [-0.9, -1.1]);
/// let sequence = Sequence::new(&logprobs, &behavior_logprobs, Advantages::Uniform(2.0))?;
/// let mut gradient = [0.0; 2];
/// assert_eq!(gspo.evaluate(&sequence, &mut gradient)?.loss, -2.0);
/// assert_eq!(gradient, [-1.0, -1.0]);
///
/// let credit = Advantages::PerToken(&[1.0, -1.0]);
/// let sequence = Sequence::new(&logprobs, &behavior_logprobs, credit)?;
/// let refused = gspo.evaluate(&sequence, &mut gradient);
/// assert_eq!(refused, Err(ObjectiveError::NonUniformAdvantages { token: 1 }));
/// # Ok::<(), ObjectiveError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gspo {
    /// The range of s_i; the paper's is [`Clip::PAPER_GSPO`].
    pub clip: Clip,
    /// The weight of a sequence by its length; the paper's is [`LengthWeight::Mean`].
    pub length_weight: LengthWeight,
}

impl Objective for Gspo {
    fn name(&self) -> &'static str {
        "gspo"
    }

    fn denominator(&self) -> Denominator {
        Denominator::Sequences
    }

    fn token_weight(&self, n_tokens: usize) -> f64 {
        self.length_weight.of(n_tokens) / n_tokens as f64
    }

    fn needs_uniform_advantages(&self) -> bool {
        true
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
        evaluate_tokens(sequence, gradient, |gradient| {
            let advantage = advantage_of(sequence)?;
            let weight = self.length_weight.of(sequence.len());
            let ratio = SequenceRatio::new(sequence, self.clip, weight)?;
            Ok(evaluate_uniform(&ratio, advantage, 1.0, gradient))
        })
    }
}

/// Returns the loss of a sequence with one advantage for all tokens, and writes its gradient times `scale`.
pub(crate) fn evaluate_uniform(
    ratio: &SequenceRatio,
    advantage: f64,
    scale: f64,
    gradient: &mut [f64],
) -> SequenceLoss {
    let (positive, negative) = ratio.gradient_per_advantage();
    let slope = if advantage > 0.0 { positive } else { negative };
    gradient.fill(advantage * slope * scale);
    ratio.loss(&SignedAdvantages::uniform(advantage, gradient.len()))
}

/// Returns the one advantage of a sequence with at least one token.
pub(crate) fn advantage_of(sequence: &Sequence<'_>) -> Result<f64, ObjectiveError> {
    match sequence.advantages() {
        Advantages::Uniform(advantage) => Ok(advantage),
        Advantages::PerToken(advantages) => {
            sequence.expect_finite_advantages()?;
            match advantages.iter().position(|&advantage| advantage != advantages[0]) {
                Some(token) => Err(ObjectiveError::NonUniformAdvantages { token }),
                None => Ok(advantages[0]),
            }
        }
    }
}
