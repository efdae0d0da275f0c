//! Property tests of objectives: generators of sequences, and one check for each property.
//!
//! A check takes any [`Objective`](turnwise_objective::Objective) and returns an error that names the property and the
//! numbers, so that it can be called in [`proptest!`](proptest::proptest) with `?`. [`check_contract`] runs the checks
//! that hold for all objectives; the others are for objectives that claim the property:
//!
//! | check | property |
//! |---|---|
//! | [`check_padding`] | only the sequence's own numbers matter, and no earlier evaluation |
//! | [`check_sequence_order`], [`check_micro_batches`], [`check_empty_sequences`] | the cut of a step changes nothing |
//! | [`check_uniform_advantages`] | one advantage equals that advantage on every token |
//! | [`check_finite`], [`check_extremes`] | finite at every ratio |
//! | [`check_refusals`], [`check_buffer_length`] | wrong input is a typed error |
//! | | *up to here [`check_contract`], from here claims* |
//! | [`check_gradient`], [`check_gradient_of`] | finite differences, without and with a stop-gradient |
//! | [`check_equals_gspo`] | equal to GSPO if the advantages are uniform |
//! | [`check_clip_sides`], [`check_clip_counts`] | which gradients a clip removes |
//! | [`check_one_token`] | equal to PPO for one token |
//! | [`check_on_policy`] | equal to REINFORCE under the weights that sampled the tokens |
//! | [`check_signs`] | each token in range moves with its own advantage |
//! | [`check_zero_advantage`], [`check_scaling`] | proportional to the advantages |
//! | [`check_token_order`], [`check_length`] | tokens count the same in any order and number |
//!
//! # Example
//!
//! ```
//! use turnwise_objective::{
//!     Denominator, MAX_LOG_RATIO, Objective, ObjectiveError, Sequence, SequenceLoss, evaluate_tokens,
//! };
//! use turnwise_testkit::objectives::{check_contract, check_gradient, steps, tokens};
//! use turnwise_testkit::proptest::prelude::*;
//!
//! /// The ratio times the advantage, never clipped.
//! #[derive(Debug)]
//! struct Unclipped;
//!
//! impl Objective for Unclipped {
//!     fn name(&self) -> &'static str {
//!         "unclipped"
//!     }
//!
//!     fn denominator(&self) -> Denominator {
//!         Denominator::Tokens
//!     }
//!
//!     fn evaluate(
//!         &self,
//!         sequence: &Sequence<'_>,
//!         gradient: &mut [f64],
//!     ) -> Result<SequenceLoss, ObjectiveError> {
//!         evaluate_tokens(sequence, gradient, |gradient| {
//!             let mut evaluated = SequenceLoss::default();
//!             for (token, slot) in gradient.iter_mut().enumerate() {
//!                 let ratio = sequence.log_ratio(token)?.min(MAX_LOG_RATIO).exp();
//!                 *slot = -ratio * sequence.advantage(token)?;
//!                 evaluated.loss += *slot;
//!             }
//!             Ok(evaluated)
//!         })
//!     }
//! }
//!
//! proptest! {
//!     // In a test module: #[test]
//!     fn it_keeps_the_contract(step in steps()) {
//!         check_contract(&Unclipped, &step)?;
//!     }
//!
//!     fn its_gradient_is_the_derivative_of_its_loss(tokens in tokens()) {
//!         check_gradient(&Unclipped, &tokens)?;
//!     }
//! }
//!
//! it_keeps_the_contract();
//! its_gradient_is_the_derivative_of_its_loss();
//! ```

// The prose here writes π_θ, A_t and n_i as the paper does.
#![allow(clippy::doc_markdown)]

mod claims;
mod compare;
mod contract;
mod fitted;
mod strategies;
mod tokens;

pub use claims::{
    check_clip_counts, check_clip_sides, check_equals_gspo, check_gradient, check_gradient_of,
    check_length, check_on_policy, check_one_token, check_scaling, check_signs, check_token_order,
    check_zero_advantage,
};
pub use compare::{all_close, close};
pub use contract::{
    check_buffer_length, check_contract, check_empty_sequences, check_extremes, check_finite,
    check_micro_batches, check_padding, check_refusals, check_scale, check_sequence_order,
    check_uniform_advantages,
};
pub use fitted::{Fitted, evaluate};
pub use strategies::{
    ClipSide, advantage, clips, f32_tokens, nonzero_advantage, orders, placed_tokens, sides, steps,
    tokens, tokens_at, tokens_near_policy,
};
pub use tokens::Tokens;
