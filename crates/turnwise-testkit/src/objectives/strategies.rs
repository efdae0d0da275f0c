use proptest::prelude::*;
use turnwise_objective::Clip;

use super::tokens::{Tokens, mean};

/// The side of a clip range on which a log ratio is, clear of the bounds themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClipSide {
    /// Below 1 − ε_l.
    Below,
    /// Between the bounds.
    Inside,
    /// Above 1 + ε_h.
    Above,
}

/// Generates a side of a clip range.
pub fn sides() -> impl Strategy<Value = ClipSide> {
    prop_oneof![Just(ClipSide::Below), Just(ClipSide::Inside), Just(ClipSide::Above)]
}

/// Generates published clip ranges and others.
pub fn clips() -> impl Strategy<Value = Clip> {
    prop_oneof![
        Just(Clip::PAPER_GSPO),
        Just(Clip::PAPER_GRPO),
        (1e-3..0.6, 1e-3..1.5)
            .prop_map(|(low, high)| Clip::new(low, high).expect("bounds are in range")),
    ]
}

/// Generates advantages of all kinds; round ones are frequent, so that equal ones and zeros occur.
pub fn advantage() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), Just(1.0), Just(-1.0), Just(0.5), Just(-2.0), -3.0..3.0]
}

/// Generates advantages of both signs, at least 0.05 in size.
pub fn nonzero_advantage() -> impl Strategy<Value = f64> {
    (0.05..3.0, any::<bool>())
        .prop_map(|(size, negative): (f64, bool)| if negative { -size } else { size })
}

/// Generates sequences of 1 to 23 tokens, each with a log ratio of its own from −1 to 1.2.
pub fn tokens() -> impl Strategy<Value = Tokens> {
    prop::collection::vec((-1.0..1.2, advantage()), 1..24).prop_map(|tokens| {
        let (log_ratios, advantages): (Vec<f64>, Vec<f64>) = tokens.into_iter().unzip();
        Tokens::drifted(&log_ratios, &advantages)
    })
}

/// Generates sequences of 1 to 19 tokens with log ratios within ±0.01 and advantages that are not 0.
pub fn tokens_near_policy() -> impl Strategy<Value = Tokens> {
    prop::collection::vec((-0.01..0.01, nonzero_advantage()), 1..20).prop_map(|tokens| {
        let (log_ratios, advantages): (Vec<f64>, Vec<f64>) = tokens.into_iter().unzip();
        Tokens::drifted(&log_ratios, &advantages)
    })
}

/// Generates sequences of 1 to 39 tokens whose mean log ratio is clearly on a given side of a clip range.
pub fn tokens_at(clip: Clip, side: ClipSide) -> impl Strategy<Value = Tokens> {
    let (low, high) = ((-clip.low()).ln_1p(), clip.high().ln_1p());
    let target = match side {
        ClipSide::Below => (low - 0.5)..(low * 1.05 - 1e-5),
        ClipSide::Inside => (low * 0.95)..(high * 0.95),
        ClipSide::Above => (high * 1.05 + 1e-5)..(high + 0.5),
    };
    let token = (-8.0..0.0, -1.0..1.0, advantage());
    (target, prop_oneof![Just(0.0), Just(1e-3), Just(0.3)], prop::collection::vec(token, 1..40))
        .prop_map(|(target, noise, tokens)| {
            let drift: Vec<f64> = tokens.iter().map(|&(_, drift, _)| drift * noise).collect();
            let shift = target - mean(&drift);
            let moved = tokens.iter().zip(&drift);
            Tokens {
                logprobs: moved.map(|(token, drift)| token.0 + (drift + shift)).collect(),
                behavior_logprobs: tokens.iter().map(|token| token.0).collect(),
                advantages: tokens.iter().map(|token| token.2).collect(),
            }
        })
}

/// Generates a clip range, a side of it and a sequence whose mean log ratio is there.
pub fn placed_tokens() -> impl Strategy<Value = (Clip, ClipSide, Tokens)> {
    (clips(), sides()).prop_flat_map(|(clip, side)| {
        tokens_at(clip, side).prop_map(move |tokens| (clip, side, tokens))
    })
}

/// Generates sequences of `min` to 19 tokens whose numbers are exact in f32, so that every order of addition gives the
/// same sum.
pub fn f32_tokens(min: usize) -> impl Strategy<Value = Tokens> {
    let token = (-8.0f32..0.0, -0.3f32..0.3, -3.0f32..3.0);
    prop::collection::vec(token, min..20).prop_map(|tokens| Tokens {
        logprobs: tokens.iter().map(|token| f64::from(token.0 + token.1)).collect(),
        behavior_logprobs: tokens.iter().map(|token| f64::from(token.0)).collect(),
        advantages: tokens.iter().map(|token| f64::from(token.2)).collect(),
    })
}

/// Generates the ratio groups of an optimiser step, 1 to 11 sequences, some of them empty.
pub fn steps() -> impl Strategy<Value = Vec<Tokens>> {
    prop::collection::vec(f32_tokens(0), 1..12)
}

/// Generates an order of the sequences of a step, or of the tokens of a sequence: a permutation of 0 to `n` − 1.
pub fn orders(n: usize) -> impl Strategy<Value = Vec<usize>> {
    Just((0..n).collect::<Vec<usize>>()).prop_shuffle()
}
