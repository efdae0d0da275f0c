//! Tests of objectives, advantages and credit, as properties and against golden values.
//!
//! The number in a test's name is that of the property that it holds, in the list below.
//!
//! ```text
//!  1 uniform advantages: GSPO = GSPO-token        13 excluded tokens, wherever they are, change nothing
//!  2 the gap between their values                 14 order, packing, micro-batches change nothing
//!  3 when their gradients are equal               15 empty sequences
//!  4 finite differences                           16 extremes
//!  5 on policy: REINFORCE                         17 a million tokens
//!  6 one token: PPO                               18 widen first
//!  7 which side is clipped                        19 turns and rows
//!  8 the bound itself                             20 credit is not averaged
//!  9 advantages of both signs                     21 expected gradients on an enumerable problem
//! 10 advantage 0                                  22 importance weights
//! 11 groups that teach nothing                    23 KL to a reference
//! 12 invariances of advantages                    24 clip fractions
//!                                                 25 golden values
//!                                                 26 no dead gradient
//! ```

// A failed unwrap is a failed test; and the prose writes π_θ and A_t as the paper does.
#![allow(clippy::unwrap_used, clippy::doc_markdown)]

mod advantages;
mod aggregation;
mod clipping;
mod correction;
mod credit;
mod estimators;
mod extremes;
mod golden;
mod gradients;
mod kl;
mod metrics;
mod neighbours;
mod precision;
mod support;
