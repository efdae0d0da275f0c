//! An objective of your own: Simple Policy Optimization (arXiv 2401.16025), which pulls each ratio back to 1 instead of
//! clipping it.
//!
//! `tests/spo.rs` tests it with what tests the objectives of turnwise, and `examples/train.rs` trains with it:
//!
//! ```sh
//! cargo test -p own-objective
//! cargo run -p own-objective --example own_objective
//! ```

use turnwise::objective::{
    Denominator, Objective, ObjectiveError, Sequence, SequenceLoss, evaluate_tokens,
};

/// Simple Policy Optimization.
///
/// ```text
/// J = mean_i (1/n_i) Σ_t r_t A_t − |A_t| / (2 epsilon) · (r_t − 1)²
/// ```
///
/// `r_t` is the ratio of the probabilities of a token under the policy that is trained and the one that sampled it. J is
/// largest at 1 + epsilon for a positive advantage and at 1 − epsilon for a negative one, so `epsilon` stands for a clip
/// range.
#[derive(Clone, Copy, Debug)]
pub struct Spo {
    /// The distance from 1 at which a ratio stops.
    pub epsilon: f64,
}

/// The logarithm at which a ratio is cut, so that its square is finite.
const MAX_LOG_RATIO: f64 = 20.0;

impl Objective for Spo {
    fn name(&self) -> &'static str {
        "spo"
    }

    fn denominator(&self) -> Denominator {
        Denominator::Sequences // and so the weight of a token is 1/n_i
    }

    fn evaluate(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError> {
        evaluate_tokens(sequence, gradient, |gradient| {
            let (weight, mut evaluated) =
                (self.token_weight(sequence.len()), SequenceLoss::default());
            for (token, slot) in gradient.iter_mut().enumerate() {
                let ratio = sequence.log_ratio(token)?.min(MAX_LOG_RATIO).exp();
                let advantage = sequence.advantage(token)?;
                let pull = advantage.abs() / self.epsilon * (ratio - 1.0);
                evaluated.loss -= weight * (ratio * advantage - 0.5 * pull * (ratio - 1.0));
                *slot = -weight * ratio * (advantage - pull); // ∂r/∂log π is r
            }
            Ok(evaluated)
        })
    }
}
