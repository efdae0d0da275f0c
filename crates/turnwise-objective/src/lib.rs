//! GSPO, GSPO-token and related objectives on log-probabilities, with closed-form gradients, and
//! the advantages and credit they need.
//!
#![doc = include_str!("../README.md")]
//!
//! A [`Sequence`] holds the columns, an [`Objective`] gives the loss and ∂loss/∂log π_t; the learner back-propagates Σ_t
//! sg\[∂loss/∂log π_t\]·log π_t.
//!
//! # Numbers
//!
//! - Log-probabilities are natural and `f64`. Widen f32, bf16 or f16 *before* subtracting: bf16
//!   cannot represent 1 ± 3e-4.
//! - Sums over tokens are compensated; clip decisions are made in log space; a ratio exactly at a
//!   bound is not clipped.
//! - log π_θ = −∞ is a ratio of 0. Any other number that is not finite is an [`ObjectiveError`]
//!   that names its token.
//! - A ratio without an upper bound (A < 0) is clamped at e^512 ([`MAX_LOG_RATIO`]), keeps its
//!   gradient, and is counted.
//! - Loops run in the widest vectors the processor has, with the same operations in the same order, so
//!   that every processor gives the same bits (as far as its library has the same exponential).
//! - A sequence without trainable tokens adds 0 and does not count.
//!
//! # Objectives
//!
//! | | ratio | bounded by | mean over |
//! |---|---|---|---|
//! | [`Gspo`], [`GspoToken`] | the sequence's | clip | tokens, then sequences |
//! | [`GspoTurn`] | the turn's | clip | tokens, then sequences |
//! | [`Grpo`] | the token's | clip | tokens, then sequences |
//! | [`Dapo`] | the token's | clip, wider above | tokens of the step |
//! | [`DrGrpo`] | the token's | clip | a constant, then sequences |
//! | [`Cispo`] | the token's, detached | a cut weight | tokens of the step |
//! | [`Gmpo`] | the tokens', geometric mean | clip per token | sequences |
//! | [`Sapo`] | the token's | a smooth gate | tokens, then sequences |
//! | [`Reinforce`] | none | nothing | tokens, then sequences |
//!
//! [`WithKl`] adds KL to a reference to any of them, [`Clip::with_dual`] adds a second bound to the
//! clipped ones, [`correction_weights`] and [`off_policy_mask`] weigh tokens that were sampled by
//! another policy than the trainer's, and [`presets`] lists published settings.

// The prose here writes π_θ, A_t and n_i as the paper does.
#![allow(clippy::doc_markdown)]
// A function that is not inlined into a pass is compiled for the baseline processor.
#![allow(clippy::inline_always)]

mod advantage;
mod anchor;
mod cispo;
mod clip;
mod correction;
mod credit;
mod dapo;
mod dr_grpo;
mod error;
mod gmpo;
mod grpo;
mod gspo;
mod gspo_token;
mod gspo_turn;
mod kl;
mod length_weight;
mod log_ratio;
mod metrics;
mod objective;
mod off_policy;
mod overlong;
mod presets;
mod reinforce;
mod sapo;
mod sequence;
mod sequence_ratio;
mod step;
mod sum;
mod token_terms;

pub use advantage::{
    AdvantageError, GroupAdvantage, ROUNDING, Std, has_zero_variance, leave_one_out, mean_only,
    mean_std, mean_with_std_of, normalised_over_batch, standard_deviation,
};
pub use anchor::by_anchor_state;
pub use cispo::Cispo;
pub use clip::Clip;
pub use correction::{
    CorrectionLevel, CorrectionRule, correction_weights, off_policy_mask, weighted,
};
pub use credit::{
    broadcast_outcome, minus_mean_return, minus_mean_return_at_turn, minus_mean_return_of_others,
    mix, normalised_over_all_turns, per_turn_index_biased, reward_to_go, reward_to_go_with_outcome,
    spread_over_tokens,
};
pub use dapo::Dapo;
pub use dr_grpo::DrGrpo;
pub use error::ObjectiveError;
pub use gmpo::Gmpo;
pub use grpo::Grpo;
pub use gspo::Gspo;
pub use gspo_token::GspoToken;
pub use gspo_turn::GspoTurn;
pub use kl::{KlEstimator, WithKl};
pub use length_weight::LengthWeight;
pub use log_ratio::MAX_LOG_RATIO;
pub use metrics::{ClipFraction, Metrics};
pub use objective::{Objective, SequenceLoss, SequenceStats, evaluate_tokens};
pub use off_policy::WithOffPolicyMask;
pub use overlong::SoftOverlong;
pub use presets::{Preset, presets};
pub use reinforce::Reinforce;
pub use sapo::Sapo;
pub use sequence::{Advantages, Sequence};
pub use step::{Denominator, StepLoss, StepSize, evaluate_step};
