use turnwise_objective::{
    AdvantageError, Clip, Gspo, GspoToken, LengthWeight, Objective, Std, broadcast_outcome,
    leave_one_out, mean_only, mean_std, minus_mean_return, minus_mean_return_at_turn,
    minus_mean_return_of_others, mix, normalised_over_all_turns, per_turn_index_biased, presets,
    reward_to_go,
};

use crate::PlainRatioImpostor;

/// An objective with its settings.
#[derive(Debug)]
pub struct NamedObjective {
    /// The name in the table.
    pub name: &'static str,
    /// The objective.
    pub objective: Box<dyn Objective>,
}

/// Returns every preset, GSPO with the other length weights, and the plain-ratio impostor.
///
/// # Panics
/// Panics if a preset is invalid.
#[must_use]
pub fn objectives() -> Vec<NamedObjective> {
    let clip = Clip::PAPER_GSPO;
    let (mean, tokens, sqrt) = (LengthWeight::Mean, LengthWeight::Tokens, LengthWeight::SqrtTokens);
    let presets = presets().into_iter().map(|preset| NamedObjective {
        name: preset.name,
        objective: preset.objective().expect("every preset is valid"),
    });
    let others = [
        named("gspo, w=n", Gspo { clip, length_weight: tokens }),
        named("gspo_token, w=sqrt(n)", GspoToken { clip, length_weight: sqrt }),
        named("gspo_token, w=n", GspoToken { clip, length_weight: tokens }),
        named("plain_ratio_impostor", PlainRatioImpostor { clip, length_weight: mean }),
        named("plain_ratio_impostor, w=n", PlainRatioImpostor { clip, length_weight: tokens }),
    ];
    presets.chain(others).collect()
}

fn named(name: &'static str, objective: impl Objective + 'static) -> NamedObjective {
    NamedObjective { name, objective: Box::new(objective) }
}

/// An advantage for each turn of each member of a group, or an error.
pub type TurnAdvantages = Result<Vec<Vec<f64>>, AdvantageError>;

/// A rule from the rewards of a group, `[members][turns]`, to advantages of the same shape.
#[derive(Clone, Copy, Debug)]
pub struct CreditRule {
    /// The name in the table.
    pub name: &'static str,
    /// The rule.
    pub assign: fn(&[Vec<f64>]) -> TurnAdvantages,
}

/// The epsilon added to a standard deviation.
const EPSILON: f64 = 1e-6;

/// Returns every credit rule. To add a rule, add a line.
#[must_use]
pub fn credits() -> Vec<CreditRule> {
    let rule = |name, assign| CreditRule { name, assign };
    vec![
        rule("broadcast return", |r| outcome(r, |returns| Ok(returns.to_vec()))),
        rule("mean_std", |r| outcome(r, |returns| mean_std(returns, Std::Sample, EPSILON))),
        rule("mean_only", |r| outcome(r, mean_only)),
        rule("leave_one_out", |r| outcome(r, leave_one_out)),
        rule("reward_to_go", |r| Ok(to_go(r, 1.0))),
        rule("reward_to_go, gamma=0.5", |r| Ok(to_go(r, 0.5))),
        rule("minus_mean_return", |r| minus_mean_return(&to_go(r, 1.0))),
        rule("minus_mean_return_of_others", |r| minus_mean_return_of_others(&to_go(r, 1.0))),
        rule("minus_mean_return_at_turn", |r| minus_mean_return_at_turn(&to_go(r, 1.0))),
        rule("mix of the two of others", half_of_each),
        rule("normalised_over_all_turns", |r| {
            normalised_over_all_turns(&to_go(r, 1.0), Std::Sample, EPSILON)
        }),
        rule("per_turn_index_biased", |r| per_turn_index_biased(r, Std::Sample, EPSILON)),
        rule("per_turn_index_biased, to go", |r| {
            per_turn_index_biased(&to_go(r, 1.0), Std::Sample, EPSILON)
        }),
    ]
}

fn half_of_each(rewards: &[Vec<f64>]) -> Result<Vec<Vec<f64>>, AdvantageError> {
    let turns = minus_mean_return_of_others(&to_go(rewards, 1.0))?;
    mix(&leave_one_out(&returns(rewards))?, &turns, 0.5, 0.5)
}

fn outcome(
    rewards: &[Vec<f64>],
    rule: fn(&[f64]) -> Result<Vec<f64>, AdvantageError>,
) -> Result<Vec<Vec<f64>>, AdvantageError> {
    let n_turns: Vec<usize> = rewards.iter().map(Vec::len).collect();
    broadcast_outcome(&rule(&returns(rewards))?, &n_turns)
}

fn returns(rewards: &[Vec<f64>]) -> Vec<f64> {
    rewards.iter().map(|turns| turns.iter().sum()).collect()
}

fn to_go(rewards: &[Vec<f64>], gamma: f64) -> Vec<Vec<f64>> {
    rewards.iter().map(|turns| reward_to_go(turns, gamma)).collect()
}
