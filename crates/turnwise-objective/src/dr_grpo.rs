//! GRPO done right.

use crate::objective::evaluate_tokens;
use crate::token_terms::{ClippedRatio, sum_terms};
use crate::{Clip, Denominator, Objective, ObjectiveError, Sequence, SequenceLoss};

/// Dr.GRPO: GRPO's terms over a constant instead of each sequence's length (arXiv 2503.20783,
/// section 3.2).
///
/// ```text
/// J  = mean_i (1/constant) Σ_t min( r_t A_t, clip(r_t, 1−ε_l, 1+ε_h) A_t )
/// ∇J = mean_i (1/constant) Σ_t r_t A_t a_t ∇log π_θ(y_t)
/// ```
///
/// GRPO's 1/n_i prefers short successes and long failures; a constant prefers neither. The other
/// half of the paper, advantages without a standard deviation, is
/// [`mean_only`](crate::mean_only).
///
/// ```
/// use turnwise_objective::{Advantages, DrGrpo, Clip, Objective, Sequence};
///
/// let dr_grpo = DrGrpo { clip: Clip::PAPER_PPO, max_tokens: 8 };
/// let sequence = Sequence::new(&[-0.5; 2], &[-0.5; 2], Advantages::Uniform(1.0))?;
/// let mut gradient = [0.0; 2];
/// assert_eq!(dr_grpo.evaluate(&sequence, &mut gradient)?.loss, -0.25);
/// assert_eq!(gradient, [-0.125; 2]);
/// # Ok::<(), turnwise_objective::ObjectiveError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrGrpo {
    /// The range of r_t.
    pub clip: Clip,
    /// The constant: the maximal number of tokens of a sequence. 0 counts as 1.
    pub max_tokens: usize,
}

impl Objective for DrGrpo {
    fn name(&self) -> &'static str {
        "dr_grpo"
    }

    fn denominator(&self) -> Denominator {
        Denominator::Sequences
    }

    fn token_weight(&self, _n_tokens: usize) -> f64 {
        1.0 / self.max_tokens.max(1) as f64
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
