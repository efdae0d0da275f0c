//! Objectives for tests, and what generates and compares numbers.

use turnwise_objective::{
    Cispo, Clip, Dapo, DrGrpo, Gmpo, Grpo, Gspo, GspoToken, GspoTurn, KlEstimator, LengthWeight,
    Objective, Reinforce, Sapo, Sequence, SequenceLoss, WithKl,
};
pub(crate) use turnwise_testkit::objectives::{
    ClipSide, Fitted, Tokens, advantage, all_close, clips, close, f32_tokens, nonzero_advantage,
    orders, placed_tokens, sides, steps, tokens, tokens_at, tokens_near_policy,
};

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

/// Returns every objective.
pub(crate) fn every_objective(clip: Clip) -> Vec<Box<dyn Objective>> {
    let mut all = every_policy_objective(clip);
    for estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3] {
        all.push(Box::new(WithKl::new(Dapo { clip }, estimator, 0.3).unwrap()));
    }
    all
}

/// Returns every objective without a KL term, whose gradient no clip removes.
pub(crate) fn every_policy_objective(clip: Clip) -> Vec<Box<dyn Objective>> {
    let length_weight = LengthWeight::SqrtTokens;
    let dual = clip.with_dual(2.0 + clip.high()).unwrap();
    vec![
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
    ]
}

/// Evaluates one sequence, fitted to the objective.
pub(crate) fn evaluate(
    objective: &dyn Objective,
    sequence: &Sequence<'_>,
) -> (SequenceLoss, Vec<f64>) {
    turnwise_testkit::objectives::evaluate(objective, sequence).unwrap()
}
