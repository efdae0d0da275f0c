//! Group Relative Policy Optimization, the baseline of the GSPO paper.

use crate::objective::evaluate_tokens;
use crate::token_terms::{ClippedRatio, sum_terms};
use crate::{Clip, Denominator, Objective, ObjectiveError, Sequence, SequenceLoss};

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
/// // Two tokens drift apart: each ratio is clipped separately, although their mean log ratio is 0.
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
        evaluate_tokens(sequence, gradient, |gradient| {
            let weight = self.token_weight(sequence.len());
            sum_terms(&ClippedRatio::from(self.clip), weight, sequence, gradient)
        })
    }
}
