//! Decoupled Clip and Dynamic Sampling Policy Optimization.

use crate::objective::evaluate_tokens;
use crate::token_terms::{ClippedRatio, sum_terms};
use crate::{Clip, Denominator, Objective, ObjectiveError, Sequence, SequenceLoss};

/// DAPO: a ratio per token, a wider upper bound, and a mean over all the tokens of the step (arXiv
/// 2503.14476, eq. 8).
///
/// ```text
/// J  = (1/Σ_i n_i) Σ_i Σ_t min( r_t A_t, clip(r_t, 1−ε_l, 1+ε_h) A_t )
/// ∇J = (1/Σ_i n_i) Σ_i Σ_t r_t A_t a_t ∇log π_θ(y_t)
/// ```
///
/// A long sequence weighs more than a short one, because all tokens weigh the same. The other parts
/// of the paper are separate: dynamic sampling drops the groups for which
/// [`has_zero_variance`](crate::has_zero_variance) returns true, and over-long shaping is
/// [`SoftOverlong`](crate::SoftOverlong).
///
/// ```
/// use turnwise_objective::{Advantages, Dapo, Sequence, evaluate_step};
///
/// let long = Sequence::new(&[-0.5; 3], &[-0.5; 3], Advantages::Uniform(1.0))?;
/// let short = Sequence::new(&[-0.5], &[-0.5], Advantages::Uniform(1.0))?;
/// let step = evaluate_step(&Dapo::PAPER, &[long, short])?;
/// assert_eq!(step.gradients, [vec![-0.25; 3], vec![-0.25]]);
/// # Ok::<(), turnwise_objective::ObjectiveError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dapo {
    /// The range of r_t; the paper's is [`Clip::PAPER_DAPO`].
    pub clip: Clip,
}

impl Dapo {
    /// ε_l = 0.2, ε_h = 0.28 (arXiv 2503.14476, section 4.1).
    pub const PAPER: Self = Self { clip: Clip::PAPER_DAPO };
}

impl Objective for Dapo {
    fn name(&self) -> &'static str {
        "dapo"
    }

    fn denominator(&self) -> Denominator {
        Denominator::Tokens
    }

    fn evaluate(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError> {
        evaluate_tokens(sequence, gradient, |gradient| {
            sum_terms(&ClippedRatio::from(self.clip), 1.0, sequence, gradient)
        })
    }
}
