//! GSPO with a ratio per turn.

use crate::gspo_token::evaluate_ratio;
use crate::objective::evaluate_tokens;
use crate::sequence_ratio::SequenceRatio;
use crate::sum::Sum;
use crate::{
    Clip, Denominator, LengthWeight, Objective, ObjectiveError, Sequence, SequenceLoss,
    SequenceStats,
};

/// GSPO-token with the ratio of the token's turn instead of the trajectory's. ROLL calls this ratio
/// *segment*.
///
/// ```text
/// J    = mean_i (w_i/n_i) Σ_k Σ_{t∈k} min( s_kt A_t, clip(s_kt, 1−ε_l, 1+ε_h) A_t )
/// s_kt = sg[s_k] · π_θ(y_t) / sg[π_θ(y_t)]
/// s_k  = exp( (1/n_k) Σ_{t∈k} [log π_θ(y_t) − log π_b(y_t)] )      over the n_k tokens of turn k
/// ```
///
/// A long trajectory's turns may drift apart while its mean stays constant; here each turn is
/// clipped separately. The objective equals [`GspoToken`](crate::GspoToken) iff the sequence has
/// one turn. Every token weighs w_i/n_i in every turn, so a turn weighs by its length; a ratio
/// group per turn, by contrast, gives every turn the same weight. Needs [`Sequence::with_turns`].
///
/// ```
/// use turnwise_objective::{Advantages, Clip, GspoTurn, LengthWeight, Objective, Sequence};
///
/// let gspo_turn = GspoTurn { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Mean };
/// // The first turn has become more probable, the second less: their mean log ratio is 0.
/// let sequence = Sequence::new(&[-0.999, -1.001], &[-1.0; 2], Advantages::Uniform(1.0))?;
/// let mut gradient = [0.0; 2];
/// gspo_turn.evaluate(&sequence.with_turns(&[1, 1])?, &mut gradient)?;
/// assert_eq!(gradient[0], 0.0);
/// assert!(gradient[1] < 0.0);
/// assert!(gspo_turn.evaluate(&sequence, &mut gradient).is_err());
/// # Ok::<(), turnwise_objective::ObjectiveError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GspoTurn {
    /// The range of s_k.
    pub clip: Clip,
    /// The weight of a sequence by its length.
    pub length_weight: LengthWeight,
}

impl Objective for GspoTurn {
    fn name(&self) -> &'static str {
        "gspo_turn"
    }

    fn denominator(&self) -> Denominator {
        Denominator::Sequences
    }

    fn token_weight(&self, n_tokens: usize) -> f64 {
        self.length_weight.of(n_tokens) / n_tokens as f64
    }

    fn needs_turns(&self) -> bool {
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
            let turns =
                sequence.turns().ok_or(ObjectiveError::MissingColumn { column: "turns" })?;
            self.evaluate_turns(sequence, turns, gradient)
        })
    }
}

impl GspoTurn {
    fn evaluate_turns(
        &self,
        sequence: &Sequence<'_>,
        turns: &[usize],
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError> {
        let (n, length_weight) = (sequence.len() as f64, self.length_weight.of(sequence.len()));
        let (mut loss, mut gap, mut log_ratio_sum) = (Sum::default(), Sum::default(), 0.0);
        let mut stats = SequenceStats { n_tokens: sequence.len(), ..SequenceStats::default() };
        let mut start = 0;
        for &n_tokens in turns.iter().filter(|&&n_tokens| n_tokens > 0) {
            let range = start..start + n_tokens;
            let (turn, share) = (sequence.slice(range.clone()), n_tokens as f64 / n);
            let ratio = SequenceRatio::new(&turn, self.clip, length_weight * share)
                .map_err(|error| error.shifted(start))?;
            let evaluated = evaluate_ratio(&ratio, turn.advantages(), 1.0, &mut gradient[range]);
            loss.add(evaluated.loss);
            gap.add(share * evaluated.stats.gap);
            log_ratio_sum += ratio.log_ratio_sum();
            stats.add_counts(&evaluated.stats);
            start += n_tokens;
        }
        stats.log_ratio = log_ratio_sum / n;
        stats.gap = gap.total();
        Ok(SequenceLoss { loss: loss.total(), stats })
    }
}

impl SequenceStats {
    /// Adds the counts and the k3 of a part.
    fn add_counts(&mut self, part: &Self) {
        self.n_with_advantage += part.n_with_advantage;
        self.n_clipped_low += part.n_clipped_low;
        self.n_clipped_high += part.n_clipped_high;
        self.n_clipped_dual += part.n_clipped_dual;
        self.n_capped += part.n_capped;
        self.k3_sum += part.k3_sum;
    }
}
