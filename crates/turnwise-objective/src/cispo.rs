//! Clipped Importance Sampling-weight Policy Optimization.

use turnwise_kernels::lanes::LANES;

use crate::clip::Band;
use crate::objective::evaluate_tokens;
use crate::token_terms::{Lanes, Term, Terms, sum_terms, weighted_logprob};
use crate::{Clip, Denominator, Objective, ObjectiveError, Sequence, SequenceLoss};

/// CISPO: REINFORCE with a clipped, detached importance weight, so that every token keeps a
/// gradient (MiniMax-M1, arXiv 2506.13585, eq. 4 and 5).
///
/// ```text
/// J  = (1/Σ_i n_i) Σ_i Σ_t sg[ clip(r_t, 1−ε_l, 1+ε_h) ] A_t log π_θ(y_t)
/// ∇J = (1/Σ_i n_i) Σ_i Σ_t     clip(r_t, 1−ε_l, 1+ε_h)   A_t ∇log π_θ(y_t)
/// ```
///
/// The gradient is not the derivative of the value, because the weight is detached. Clipping
/// removes no gradient; tokens with a clipped weight are counted in
/// [`SequenceStats::n_truncated`](crate::SequenceStats::n_truncated). The paper sets no lower bound
/// and does not state its upper bound, so there is no `PAPER` constant. The value clamps log π_θ at
/// −10⁶.
///
/// ```
/// use turnwise_objective::{Advantages, Cispo, Objective, Sequence};
///
/// let cispo = Cispo::new(None, 0.25)?;
/// let sequence = Sequence::new(&[-0.5, -3.0], &[-1.5, -1.0], Advantages::Uniform(1.0))?;
/// let mut gradient = [0.0; 2];
/// cispo.evaluate(&sequence, &mut gradient)?;
/// assert_eq!(gradient[0], -1.25); // a ratio of e
/// assert!((gradient[1] + f64::exp(-2.0)).abs() < 1e-15); // no lower bound
/// # Ok::<(), turnwise_objective::ObjectiveError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cispo {
    low: Option<f64>,
    clip: Clip,
}

impl Cispo {
    /// Creates CISPO with weights from 1 − `low` (from 0 without it) to 1 + `high`.
    ///
    /// # Errors
    ///
    /// [`ObjectiveError::InvalidClip`] unless 0 ≤ `low` < 1 and 0 ≤ `high` < ∞.
    pub fn new(low: Option<f64>, high: f64) -> Result<Self, ObjectiveError> {
        Ok(Self { low, clip: Clip::new(low.unwrap_or(0.0), high)? })
    }

    /// Returns ε_l, if there is a lower bound.
    #[must_use]
    pub fn low(&self) -> Option<f64> {
        self.low
    }

    /// Returns ε_h.
    #[must_use]
    pub fn high(&self) -> f64 {
        self.clip.high()
    }
}

impl Objective for Cispo {
    fn name(&self) -> &'static str {
        "cispo"
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
            sum_terms(&CutWeight::from(*self), 1.0, sequence, gradient)
        })
    }
}

/// sg[clip(r)] A log π.
#[derive(Clone, Copy, Debug)]
struct CutWeight {
    band: Band,
    has_lower_bound: bool,
}

impl From<Cispo> for CutWeight {
    fn from(cispo: Cispo) -> Self {
        Self { band: cispo.clip.into(), has_lower_bound: cispo.low.is_some() }
    }
}

impl Term for CutWeight {
    #[inline(always)]
    fn of(&self, tokens: &Lanes) -> Terms {
        let (below, above) = self.band.sides(&tokens.log_ratios);
        let mut terms = Terms::default();
        for lane in 0..LANES {
            let low = self.has_lower_bound & below[lane];
            let raised = if low { self.band.low } else { tokens.ratios[lane] };
            let weight = if above[lane] { self.band.high } else { raised };
            let advantage = tokens.advantages[lane];
            (terms.values[lane], terms.gradient[lane]) =
                weighted_logprob(weight, advantage, tokens.logprobs[lane]);
            let is_cut = low | above[lane];
            terms.truncated[lane] = (advantage != 0.0) & is_cut;
        }
        terms
    }
}
