//! A laboratory for the policy gradient, where properties of estimators are measured instead of assumed.
//!
#![doc = include_str!("../README.md")]
//!
//! - [`measure`] enumerates small multi-turn problems ([`problems`]) and computes, for every objective with every
//!   credit, the expected gradient, its distance from the true one, and its variance. Nothing is sampled.
//! - [`credit`] is an experiment with the training loop: a task of two turns in which only the first matters.
//!
//! # Exact results
//!
//! With θ equal to the behaviour policy, and a sequence's weight equal to its number of tokens
//! (`LengthWeight::Tokens`), the expected gradient of GSPO-token is the true one for every credit of the form *return
//! from the turn on, minus a baseline that does not depend on the turn's tokens*: `reward_to_go`,
//! `minus_mean_return_of_others`, `minus_mean_return_at_turn`, `leave_one_out`, and mixtures of them. `mean_only` and
//! `minus_mean_return`, which include a member in its own baseline, give (1 − 1/G) of it. The same holds for GSPO with
//! the credits that are equal on all tokens.
//!
//! These combinations do not have the true gradient:
//!
//! - the paper's weight 1/n_i if trajectories differ in length (with n tokens each it is exactly 1/n of the gradient);
//! - division by the group's standard deviation, which depends on the tokens: its direction is right only in large groups;
//! - `normalised_over_all_turns`, whose mean counts long trajectories more often; right only in large groups;
//! - `per_turn_index_biased`, in groups of any size, if the policy decides when to stop;
//! - a discount below 1, and any credit of immediate rewards, if an earlier turn earns a later reward;
//! - the plain-ratio impostor ([`PlainRatioImpostor`]) with any credit that differs between turns.
//!
//! Off policy, GSPO's ratio is not an importance weight, so no result is exact; the table shows the size of the error.

// The prose here writes π_θ, A_t and n_i as the papers do.
#![allow(clippy::doc_markdown)]

pub mod credit;
mod estimators;
mod exact;
mod impostor;
mod policy;
mod problem;
pub mod problems;
mod table;

pub use estimators::{CreditRule, NamedObjective, TurnAdvantages, credits, objectives};
pub use exact::{
    Estimate, LabError, MAX_GROUP_SIZE, Measurement, Setup, expected_gradients, measure,
};
pub use impostor::PlainRatioImpostor;
pub use policy::SoftmaxPolicy;
pub use problem::{Problem, ProblemTrajectory, ProblemTurn, Situation, Token};
pub use table::{LEGEND, table};
