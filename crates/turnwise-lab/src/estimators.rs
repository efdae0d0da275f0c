use turnwise_objective::{
    AdvantageError, Clip, Gspo, GspoToken, LengthWeight, Objective, Std, broadcast_outcome,
    leave_one_out, mean_only, mean_std, minus_mean_return, minus_mean_return_of_others, mix,
    normalised_over_all_turns, per_turn_index_biased, presets, reward_to_go,
};

use crate::PlainRatioImpostor;

/// An objective with its settings.
#[derive(Debug)]
pub struct NamedObjective {
    /// The name in the table.
    pub name: &'static str,
    /// What it is.
    pub objective: Box<dyn Objective>,
}

/// Every preset, GSPO with the other weights of length, and what only looks like GSPO-token.
///
/// # Panics
/// When a preset's own numbers are refused.
#[must_use]
pub fn objectives() -> Vec<NamedObjective> {
    let clip = Clip::PAPER_GSPO;
    let (mean, tokens, sqrt) = (LengthWeight::Mean, LengthWeight::Tokens, LengthWeight::SqrtTokens);
    let presets = presets().into_iter().map(|preset| NamedObjective {
        name: preset.name,
        objective: preset.objective().expect("a preset is made of numbers that can be"),
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

/// An advantage for each turn of each member of a group, or why there is none.
pub type TurnAdvantages = Result<Vec<Vec<f64>>, AdvantageError>;

/// A rule that turns the rewards of a group, `[members][turns]`, into advantages of the same shape.
#[derive(Clone, Copy, Debug)]
pub struct CreditRule {
    /// The name in the table.
    pub name: &'static str,
    /// The rule.
    pub assign: fn(&[Vec<f64>]) -> TurnAdvantages,
}

/// What stands beside a standard deviation.
const EPSILON: f64 = 1e-6;

/// Every credit. A new one is one more line.
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
        rule("minus_mean_at_turn_of_others", |r| minus_mean_at_turn_of_others(&to_go(r, 1.0))),
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

/// The return from each turn on minus the mean of the same of the *other* trajectories that have that turn.
///
/// ```text
/// A_ik = G_ik − mean_{j≠i, j has a turn k} G_jk
/// ```
///
/// Where no other has a turn k, their mean return stands in, Σ_{j≠i} G_j0 / (n − 1); a trajectory that is alone gets 0.
///
/// The baseline differs from turn to turn, as that of [`per_turn_index_biased`] does, and still the expected policy gradient
/// is the true one, also where the policy decides when to stop: the value is the whole return from the turn on, so that what
/// going on is worth is in it, and the baseline is made of the others alone, so that it does not depend on the tokens it is
/// subtracted for. It is closer to the value of the turn than the mean return of an episode is, most of all in turns after
/// which nothing can be earned.
///
/// # Errors
/// As [`minus_mean_return_of_others`].
pub fn minus_mean_at_turn_of_others(to_go: &[Vec<f64>]) -> Result<Vec<Vec<f64>>, AdvantageError> {
    let mut advantages = minus_mean_return_of_others(to_go)?;
    for (member, row) in advantages.iter_mut().enumerate() {
        for (turn, advantage) in row.iter_mut().enumerate() {
            let others = to_go.iter().enumerate().filter(|(other, _)| *other != member);
            let there: Vec<f64> =
                others.filter_map(|(_, turns)| turns.get(turn)).copied().collect();
            if !there.is_empty() {
                let mean = there.iter().sum::<f64>() / there.len() as f64;
                *advantage = to_go[member][turn] - mean;
            }
        }
    }
    Ok(advantages)
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
