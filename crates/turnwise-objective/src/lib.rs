//! GSPO, GSPO-token and GRPO on log-probabilities, with closed-form gradients, and the advantages
//! and credit they need.
//!
//! Everything here is a pure function on `f64`: no tensor, no model, no thread, no dependency. A
//! sequence is the trainable sampled tokens of one trajectory, over all its turns ([`Sequence`]);
//! an [`Objective`] gives its loss and ∂loss/∂log π_t; the model side back-propagates Σ_t
//! sg\[∂loss/∂log π_t\]·log π_t.
//!
//! ```
//! use turnwise_objective::{
//!     Advantages, Clip, Gspo, LengthWeight, Sequence, Std, evaluate_step, mean_std,
//! };
//!
//! // One prompt, four answers, the first of which was right.
//! let advantages = mean_std(&[1.0, 0.0, 0.0, 0.0], Std::Sample, 1e-6)?;
//! let behavior_logprobs = [[-0.7, -1.2], [-0.4, -2.0], [-1.0, -0.1], [-0.3, -0.9]];
//! let logprobs = behavior_logprobs; // the first step after sampling
//! let sequence = |i: usize| {
//!     Sequence::new(&logprobs[i], &behavior_logprobs[i], Advantages::Uniform(advantages[i]))
//! };
//! let sequences: Vec<Sequence> = (0..4).map(sequence).collect::<Result<_, _>>()?;
//!
//! let gspo = Gspo { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Mean };
//! let step = evaluate_step(&gspo, &sequences)?;
//! assert!(step.loss.abs() < 1e-15); // advantages of a group sum to 0
//! assert!(step.gradients[0][0] < 0.0); // and the right answer becomes more probable
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Numbers
//!
//! - Log-probabilities are natural and `f64`. Widen f32, bf16 or f16 *before* subtracting: bf16
//!   cannot represent 1 ± 3e-4.
//! - Sums over tokens are compensated; clip decisions are made in log space; a ratio exactly at a
//!   bound is not clipped.
//! - log π_θ = −∞ is a ratio of 0. Any other number that is not finite is an [`ObjectiveError`]
//!   that names its token.
//! - A ratio that no bound limits (A < 0) is cut at e^512 ([`MAX_LOG_RATIO`]), keeps its
//!   gradient, and is counted.
//! - A sequence without trainable tokens adds 0 and does not count.
//!
//! # Not here
//!
//! A KL term, importance weights between an inference engine and the trainer, ratios per turn, and
//! groups by anchor state.

// The prose here writes π_θ, A_t and n_i as the paper does.
#![allow(clippy::doc_markdown)]

mod advantage;
mod clip;
mod credit;
mod error;
mod grpo;
mod gspo;
mod gspo_token;
mod length_weight;
mod log_ratio;
mod metrics;
mod objective;
mod sequence;
mod sequence_ratio;
mod step;
mod sum;

pub use advantage::{
    AdvantageError, GroupAdvantage, Std, has_zero_variance, leave_one_out, mean_only, mean_std,
    mean_with_std_of, standard_deviation,
};
pub use clip::Clip;
pub use credit::{
    broadcast_outcome, minus_mean_return, minus_mean_return_of_others, mix,
    normalised_over_all_turns, per_turn_index_biased, reward_to_go, reward_to_go_with_outcome,
    spread_over_tokens,
};
pub use error::ObjectiveError;
pub use grpo::Grpo;
pub use gspo::Gspo;
pub use gspo_token::GspoToken;
pub use length_weight::LengthWeight;
pub use log_ratio::MAX_LOG_RATIO;
pub use metrics::{ClipFraction, Metrics};
pub use objective::{Objective, SequenceLoss, SequenceStats};
pub use sequence::{Advantages, Sequence};
pub use step::{Denominator, StepLoss, StepSize, evaluate_step};
