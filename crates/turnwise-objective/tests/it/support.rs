//! Sequences for tests, and comparisons of numbers.

use proptest::prelude::*;
use turnwise_objective::{
    Advantages, Cispo, Clip, Dapo, Denominator, DrGrpo, Gmpo, Grpo, Gspo, GspoToken, GspoTurn,
    KlEstimator, LengthWeight, Objective, ObjectiveError, Reinforce, Sapo, Sequence, SequenceLoss,
    WithKl,
};

/// The columns of a sequence, owned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tokens {
    pub(crate) logprobs: Vec<f64>,
    pub(crate) behavior_logprobs: Vec<f64>,
    pub(crate) advantages: Vec<f64>,
}

impl Tokens {
    /// Creates tokens with these log ratios; −1 is the behaviour log-probability of each.
    pub(crate) fn drifted(log_ratios: &[f64], advantages: &[f64]) -> Self {
        Self {
            logprobs: log_ratios.iter().map(|log_ratio| log_ratio - 1.0).collect(),
            behavior_logprobs: vec![-1.0; log_ratios.len()],
            advantages: advantages.to_vec(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.logprobs.len()
    }

    pub(crate) fn per_token(&self) -> Sequence<'_> {
        Sequence::new(
            &self.logprobs,
            &self.behavior_logprobs,
            Advantages::PerToken(&self.advantages),
        )
        .unwrap()
    }

    pub(crate) fn uniform(&self, advantage: f64) -> Sequence<'_> {
        Sequence::new(&self.logprobs, &self.behavior_logprobs, Advantages::Uniform(advantage))
            .unwrap()
    }

    pub(crate) fn log_ratios(&self) -> Vec<f64> {
        self.logprobs.iter().zip(&self.behavior_logprobs).map(|(a, b)| a - b).collect()
    }

    /// Returns log s_i, computed naively.
    pub(crate) fn log_ratio(&self) -> f64 {
        mean(&self.log_ratios())
    }

    pub(crate) fn mean_advantage(&self) -> f64 {
        mean(&self.advantages)
    }

    /// Returns the tokens at these positions, in this order.
    pub(crate) fn pick(&self, positions: &[usize]) -> Self {
        let of = |column: &[f64]| positions.iter().map(|&position| column[position]).collect();
        Self {
            logprobs: of(&self.logprobs),
            behavior_logprobs: of(&self.behavior_logprobs),
            advantages: of(&self.advantages),
        }
    }
}

pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

pub(crate) const WEIGHTS: [LengthWeight; 3] =
    [LengthWeight::Mean, LengthWeight::Tokens, LengthWeight::SqrtTokens];

pub(crate) fn gspo(clip: Clip) -> Gspo {
    Gspo { clip, length_weight: LengthWeight::Mean }
}

pub(crate) fn gspo_token(clip: Clip) -> GspoToken {
    GspoToken { clip, length_weight: LengthWeight::Mean }
}

/// Returns GSPO, GSPO-token and GRPO.
pub(crate) fn objectives(clip: Clip) -> [Box<dyn Objective>; 3] {
    [Box::new(gspo(clip)), Box::new(gspo_token(clip)), Box::new(Grpo { clip })]
}

/// An objective that accepts any sequence: GSPO and GMPO get the mean of the advantages, a ratio
/// per turn gets two turns of equal length, and a KL term gets the behaviour policy as its
/// reference.
#[derive(Debug)]
pub(crate) struct Fitted(pub(crate) Box<dyn Objective>);

impl Objective for Fitted {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn denominator(&self) -> Denominator {
        self.0.denominator()
    }

    fn token_weight(&self, n_tokens: usize) -> f64 {
        self.0.token_weight(n_tokens)
    }

    fn evaluate(
        &self,
        sequence: &Sequence<'_>,
        gradient: &mut [f64],
    ) -> Result<SequenceLoss, ObjectiveError> {
        let (logprobs, behavior_logprobs) = (sequence.logprobs(), sequence.behavior_logprobs());
        let n = sequence.len();
        let advantages = match sequence.advantages() {
            // A number that is not finite keeps its place, so that the error can name it.
            Advantages::PerToken(all)
                if self.0.needs_uniform_advantages() && all.iter().all(|a| a.is_finite()) =>
            {
                Advantages::Uniform(if n == 0 { 0.0 } else { mean(all) })
            }
            other => other,
        };
        let turns = [n / 2, n - n / 2];
        let fitted = Sequence::new(logprobs, behavior_logprobs, advantages)?
            .with_turns(&turns)?
            .with_reference(behavior_logprobs)?;
        self.0.evaluate(&fitted, gradient)
    }
}

/// Returns every objective, each able to take any sequence.
pub(crate) fn every_objective(clip: Clip) -> Vec<Box<dyn Objective>> {
    let mut all = every_policy_objective(clip);
    for estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3] {
        let held = WithKl::new(Dapo { clip }, estimator, 0.3).unwrap();
        all.push(Box::new(Fitted(Box::new(held))));
    }
    all
}

/// Returns every objective without a KL term, whose gradient no clip removes.
pub(crate) fn every_policy_objective(clip: Clip) -> Vec<Box<dyn Objective>> {
    let length_weight = LengthWeight::SqrtTokens;
    let dual = clip.with_dual(2.0 + clip.high()).unwrap();
    let all: [Box<dyn Objective>; 14] = [
        Box::new(gspo(clip)),
        Box::new(Gspo { clip: dual, length_weight }),
        Box::new(gspo_token(clip)),
        Box::new(GspoTurn { clip, length_weight: LengthWeight::Mean }),
        Box::new(GspoTurn { clip: dual, length_weight }),
        Box::new(Grpo { clip }),
        Box::new(Grpo { clip: dual }),
        Box::new(Dapo { clip }),
        Box::new(DrGrpo { clip, max_tokens: 32 }),
        Box::new(Cispo::new(Some(clip.low()), clip.high()).unwrap()),
        Box::new(Cispo::new(None, clip.high()).unwrap()),
        Box::new(Gmpo::PAPER),
        Box::new(Sapo::PAPER),
        Box::new(Reinforce { length_weight: LengthWeight::Mean }),
    ];
    all.into_iter().map(|objective| Box::new(Fitted(objective)) as Box<dyn Objective>).collect()
}

/// Evaluates one sequence. The gradient starts as NaN, so that an entry that was not written shows.
pub(crate) fn evaluate(
    objective: &dyn Objective,
    sequence: &Sequence<'_>,
) -> (SequenceLoss, Vec<f64>) {
    let mut gradient = vec![f64::NAN; sequence.len()];
    let evaluated = objective.evaluate(sequence, &mut gradient).unwrap();
    (evaluated, gradient)
}

/// Returns whether two numbers are equal up to `tolerance`, relative above 1 and absolute below.
pub(crate) fn close(a: f64, b: f64, tolerance: f64) -> bool {
    (a - b).abs() <= tolerance * a.abs().max(b.abs()).max(1.0)
}

pub(crate) fn all_close(a: &[f64], b: &[f64], tolerance: f64) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(&a, &b)| close(a, b, tolerance))
}

/// The side of a clip range on which a sequence's log ratio is, clear of the bounds themselves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Side {
    Below,
    Inside,
    Above,
}

pub(crate) fn sides() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::Below), Just(Side::Inside), Just(Side::Above)]
}

pub(crate) fn clips() -> impl Strategy<Value = Clip> {
    prop_oneof![
        Just(Clip::PAPER_GSPO),
        Just(Clip::PAPER_GRPO),
        (1e-3..0.6, 1e-3..1.5).prop_map(|(low, high)| Clip::new(low, high).unwrap()),
    ]
}

/// Generates advantages of all kinds; round ones are frequent, so that equal ones and zeros occur.
pub(crate) fn advantage() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), Just(1.0), Just(-1.0), Just(0.5), Just(-2.0), -3.0..3.0]
}

pub(crate) fn nonzero_advantage() -> impl Strategy<Value = f64> {
    (0.05..3.0, any::<bool>())
        .prop_map(|(size, negative): (f64, bool)| if negative { -size } else { size })
}

/// Generates sequences of 1 to 40 tokens whose log ratio is clearly on a given side of a clip
/// range.
pub(crate) fn tokens_at(clip: Clip, side: Side) -> impl Strategy<Value = Tokens> {
    let (low, high) = ((-clip.low()).ln_1p(), clip.high().ln_1p());
    let target = match side {
        Side::Below => (low - 0.5)..(low * 1.05 - 1e-5),
        Side::Inside => (low * 0.95)..(high * 0.95),
        Side::Above => (high * 1.05 + 1e-5)..(high + 0.5),
    };
    let token = (-8.0..0.0, -1.0..1.0, advantage());
    (target, prop_oneof![Just(0.0), Just(1e-3), Just(0.3)], prop::collection::vec(token, 1..40))
        .prop_map(|(target, noise, tokens)| {
            let drift: Vec<f64> = tokens.iter().map(|&(_, drift, _)| drift * noise).collect();
            let shift = target - mean(&drift);
            Tokens {
                logprobs: tokens
                    .iter()
                    .zip(&drift)
                    .map(|(token, drift)| token.0 + (drift + shift))
                    .collect(),
                behavior_logprobs: tokens.iter().map(|token| token.0).collect(),
                advantages: tokens.iter().map(|token| token.2).collect(),
            }
        })
}

/// Generates a clip range, a side of it and a sequence there.
pub(crate) fn placed_tokens() -> impl Strategy<Value = (Clip, Side, Tokens)> {
    (clips(), sides()).prop_flat_map(|(clip, side)| {
        tokens_at(clip, side).prop_map(move |tokens| (clip, side, tokens))
    })
}

/// Generates sequences of `min` to 19 tokens whose numbers are exact in f32, so that every order of
/// addition gives the same sum.
pub(crate) fn f32_tokens(min: usize) -> impl Strategy<Value = Tokens> {
    let token = (-8.0f32..0.0, -0.3f32..0.3, -3.0f32..3.0);
    prop::collection::vec(token, min..20).prop_map(|tokens| Tokens {
        logprobs: tokens.iter().map(|token| f64::from(token.0 + token.1)).collect(),
        behavior_logprobs: tokens.iter().map(|token| f64::from(token.0)).collect(),
        advantages: tokens.iter().map(|token| f64::from(token.2)).collect(),
    })
}
