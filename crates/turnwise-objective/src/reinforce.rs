//! REINFORCE, the policy gradient without a ratio.

use turnwise_kernels::lanes::LANES;

use crate::objective::evaluate_tokens;
use crate::token_terms::{Lanes, Term, Terms, sum_terms, weighted_logprob};
use crate::{Denominator, LengthWeight, Objective, ObjectiveError, Sequence, SequenceLoss};

/// REINFORCE: the advantage times the log-probability (Williams 1992, *Machine Learning* 8, eq. 4).
///
/// ```text
/// J  = mean_i (w_i/n_i) Σ_t A_t log π_θ(y_t)
/// ∇J = mean_i (w_i/n_i) Σ_t A_t ∇log π_θ(y_t)
/// ```
///
/// With [`LengthWeight::Tokens`] the sequence is the action, and its log-probability the sum over
/// its tokens: with advantages from [`leave_one_out`](crate::leave_one_out) this is RLOO
/// ([`Reinforce::RLOO`], arXiv 2402.14740, eq. 7). Without a ratio, nothing corrects for a policy
/// that has changed since it sampled the tokens: take one step per batch. (REINFORCE++, arXiv
/// 2501.03262, is a different method: its objective is PPO's clipped ratio, and its contribution is
/// the advantage, [`normalised_over_batch`](crate::normalised_over_batch).) The value clamps log
/// π_θ at −10⁶.
///
/// ```
/// use turnwise_objective::{Advantages, Objective, Reinforce, Sequence};
///
/// let sequence = Sequence::new(&[-0.5, -1.5], &[-0.5, -1.5], Advantages::Uniform(2.0))?;
/// let mut gradient = [0.0; 2];
/// assert_eq!(Reinforce::RLOO.evaluate(&sequence, &mut gradient)?.loss, 4.0);
/// assert_eq!(gradient, [-2.0; 2]);
/// # Ok::<(), turnwise_objective::ObjectiveError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reinforce {
    /// The weight of a sequence by its length.
    pub length_weight: LengthWeight,
}

impl Reinforce {
    /// The whole sequence as one action (arXiv 2402.14740, section 2 and eq. 7).
    pub const RLOO: Self = Self { length_weight: LengthWeight::Tokens };
}

impl Objective for Reinforce {
    fn name(&self) -> &'static str {
        "reinforce"
    }

    fn denominator(&self) -> Denominator {
        Denominator::Sequences
    }

    fn token_weight(&self, n_tokens: usize) -> f64 {
        self.length_weight.of(n_tokens) / n_tokens as f64
    }

    fn evaluate(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError> {
        evaluate_tokens(sequence, gradient, |gradient| {
            let weight = self.token_weight(sequence.len());
            sum_terms(&Logprob, weight, sequence, gradient)
        })
    }
}

/// A log π.
#[derive(Clone, Copy, Debug)]
struct Logprob;

impl Term for Logprob {
    #[inline(always)]
    fn of(&self, tokens: &Lanes) -> Terms {
        let mut terms = Terms::default();
        for lane in 0..LANES {
            (terms.values[lane], terms.gradient[lane]) =
                weighted_logprob(1.0, tokens.advantages[lane], tokens.logprobs[lane]);
        }
        terms
    }
}
