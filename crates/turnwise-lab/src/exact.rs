use serde::{Deserialize, Serialize};
use turnwise_objective::{
    AdvantageError, Advantages, ObjectiveError, Sequence, evaluate_step, spread_over_tokens,
};

use crate::{
    CreditRule, NamedObjective, Problem, ProblemTrajectory, SoftmaxPolicy, credits, objectives,
};

/// The settings of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// G, the number of trajectories of a group.
    pub group_size: usize,
    /// The Euclidean distance of the behaviour policy's logits from θ; 0 is on policy.
    pub off_policy: f64,
}

impl Default for Setup {
    /// Returns groups of three, on policy.
    fn default() -> Self {
        Self { group_size: 3, off_policy: 0.0 }
    }
}

/// The exact moments of an estimator's gradient, as a direction of ascent.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// The objective's name.
    pub objective: &'static str,
    /// The credit's name.
    pub credit: &'static str,
    /// E\[g\], in the order of [`SoftmaxPolicy::flat`].
    pub mean: Vec<f64>,
    /// tr Cov\[g\] = E|g|² − |E g|².
    pub variance: f64,
}

/// An estimator's gradient beside the true one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measurement {
    /// The problem's name.
    pub problem: &'static str,
    /// The objective's name.
    pub objective: &'static str,
    /// The credit's name.
    pub credit: &'static str,
    /// α = ⟨E g, ∇J⟩ / |∇J|², the multiple of the true gradient that is closest to the expected gradient.
    pub scale: f64,
    /// |E g − ∇J| / |∇J|: the bias.
    pub relative_bias: f64,
    /// |E g − α∇J| / |E g|: the bias that no learning rate corrects, from 0 to 1. It is 1 if α is not positive, because
    /// then the expected gradient has no component in the true direction.
    pub bend: f64,
    /// The cosine of the angle between E g and ∇J; `None` if E g is 0.
    pub cosine: Option<f64>,
    /// tr Cov\[g\] / |E g|², for one group; `None` if E g is 0.
    pub relative_variance: Option<f64>,
}

/// An error of a measurement.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// The group size is outside the range that can be enumerated.
    #[error(
        "cannot enumerate groups of {group_size}: the size must lie from 1 to {MAX_GROUP_SIZE}"
    )]
    GroupSize {
        /// The requested size.
        group_size: usize,
    },
    /// The distance of the behaviour policy is negative or not finite.
    #[error(
        "cannot move the behaviour policy by {off_policy}: the distance must be finite and not negative"
    )]
    OffPolicy {
        /// The requested distance.
        off_policy: f64,
    },
    /// A credit rule refused the rewards.
    #[error("cannot assign {credit} on {problem}")]
    Credit {
        /// The problem.
        problem: &'static str,
        /// The credit.
        credit: &'static str,
        /// The cause.
        #[source]
        source: AdvantageError,
    },
    /// An objective refused the numbers.
    #[error("cannot evaluate {objective} on {problem}")]
    Objective {
        /// The problem.
        problem: &'static str,
        /// The objective.
        objective: &'static str,
        /// The cause.
        #[source]
        source: ObjectiveError,
    },
}

/// The largest group size that is enumerated.
pub const MAX_GROUP_SIZE: usize = 6;

/// Numbers below this, relative to the true gradient, are rounding errors.
pub(crate) const ZERO: f64 = 1e-12;

/// Measures every objective with every credit on one problem. Omits a pair that the objective refuses (GSPO, credit
/// that differs between turns).
///
/// # Errors
/// [`LabError`].
pub fn measure(problem: &Problem, setup: Setup) -> Result<Vec<Measurement>, LabError> {
    let truth = problem.true_gradient(&problem.policy);
    let estimates = expected_gradients(problem, setup, &objectives(), &credits())?;
    Ok(estimates.iter().map(|estimate| compare(problem.name, estimate, &truth)).collect())
}

/// Returns the moments of the gradient over all groups, for each objective with each credit that it accepts.
///
/// Groups are enumerated as multisets with their multiplicities, because credits and objectives do not depend on the
/// order of members.
///
/// # Errors
/// [`LabError`].
pub fn expected_gradients(
    problem: &Problem,
    setup: Setup,
    objectives: &[NamedObjective],
    credits: &[CreditRule],
) -> Result<Vec<Estimate>, LabError> {
    check(setup)?;
    let episodes = episodes(problem, setup.off_policy);
    let n = problem.policy.len();
    let mut sums: Vec<Vec<Option<Moments>>> =
        vec![vec![Some(Moments::new(n)); objectives.len()]; credits.len()];
    for group in multisets(episodes.len(), setup.group_size) {
        let members: Vec<&EstimatorInput> = group.iter().map(|&index| &episodes[index]).collect();
        let probability =
            arrangements(&group) * members.iter().map(|member| member.probability).product::<f64>();
        for (credit, sums) in credits.iter().zip(&mut sums) {
            let advantages = token_advantages(problem.name, credit, &members)?;
            for (objective, sum) in objectives.iter().zip(sums) {
                let gradient = gradient(problem.name, objective, &members, &advantages, n)?;
                // An objective that refuses a credit for one group has no expectation under it.
                match gradient {
                    Some(gradient) => {
                        if let Some(sum) = sum {
                            sum.add(probability, &gradient);
                        }
                    }
                    None => *sum = None,
                }
            }
        }
    }
    let named = credits.iter().zip(sums).flat_map(|(credit, sums)| {
        let estimate = |(objective, sum): (&NamedObjective, Option<Moments>)| {
            sum.map(|sum| sum.finish(objective.name, credit.name))
        };
        objectives.iter().zip(sums).filter_map(estimate).collect::<Vec<_>>()
    });
    Ok(named.collect())
}

fn check(setup: Setup) -> Result<(), LabError> {
    let Setup { group_size, off_policy } = setup;
    if !(1..=MAX_GROUP_SIZE).contains(&group_size) {
        return Err(LabError::GroupSize { group_size });
    }
    if !(0.0..f64::INFINITY).contains(&off_policy) {
        return Err(LabError::OffPolicy { off_policy });
    }
    Ok(())
}

/// A trajectory with the input of an estimator.
#[derive(Debug)]
struct EstimatorInput {
    /// The probability under the behaviour policy.
    probability: f64,
    rewards: Vec<f64>,
    /// The number of tokens of each turn.
    lengths: Vec<usize>,
    logprobs: Vec<f64>,
    behavior_logprobs: Vec<f64>,
    /// ∇log π_θ of each token. `[tokens][logits]`
    scores: Vec<Vec<f64>>,
}

impl EstimatorInput {
    fn new(
        trajectory: &ProblemTrajectory,
        policy: &SoftmaxPolicy,
        behavior: &SoftmaxPolicy,
    ) -> Self {
        let score = |token| {
            let mut score = vec![0.0; policy.len()];
            policy.add_score(token, 1.0, &mut score);
            score
        };
        Self {
            probability: trajectory.probability(behavior),
            rewards: trajectory.turns.iter().map(|turn| turn.reward).collect(),
            lengths: trajectory.turns.iter().map(|turn| turn.tokens.len()).collect(),
            logprobs: trajectory.tokens().map(|token| policy.logprob(token)).collect(),
            behavior_logprobs: trajectory.tokens().map(|token| behavior.logprob(token)).collect(),
            scores: trajectory.tokens().map(score).collect(),
        }
    }
}

fn episodes(problem: &Problem, off_policy: f64) -> Vec<EstimatorInput> {
    // The direction is arbitrary, without a symmetry of a problem, and the same on every machine.
    let direction: Vec<f64> =
        (1..=problem.policy.len()).map(|place| ((7 * place) % 11) as f64 - 5.0).collect();
    let norm = direction.iter().map(|part| part * part).sum::<f64>().sqrt();
    let change: Vec<f64> = direction.iter().map(|part| off_policy * part / norm).collect();
    let behavior = problem.policy.moved(&change);
    let trajectories = problem.trajectories();
    trajectories.iter().map(|one| EstimatorInput::new(one, &problem.policy, &behavior)).collect()
}

/// Returns the advantage of every token. `[members][tokens]`
fn token_advantages(
    problem: &'static str,
    credit: &CreditRule,
    members: &[&EstimatorInput],
) -> Result<Vec<Vec<f64>>, LabError> {
    let refused = |source| LabError::Credit { problem, credit: credit.name, source };
    let rewards: Vec<Vec<f64>> = members.iter().map(|member| member.rewards.clone()).collect();
    let turns = (credit.assign)(&rewards).map_err(refused)?;
    let spread = |(member, turns): (&&EstimatorInput, &Vec<f64>)| {
        spread_over_tokens(turns, &member.lengths).map_err(refused)
    };
    members.iter().zip(&turns).map(spread).collect()
}

/// Returns the ascent direction in θ of one group, or `None` if the objective refuses the credit.
fn gradient(
    problem: &'static str,
    objective: &NamedObjective,
    members: &[&EstimatorInput],
    advantages: &[Vec<f64>],
    n: usize,
) -> Result<Option<Vec<f64>>, LabError> {
    let refused = |source| LabError::Objective { problem, objective: objective.name, source };
    let mut sequences = Vec::with_capacity(members.len());
    for (member, advantages) in members.iter().zip(advantages) {
        let advantages = Advantages::PerToken(advantages);
        let sequence = Sequence::new(&member.logprobs, &member.behavior_logprobs, advantages)
            .and_then(|sequence| sequence.with_turns(&member.lengths));
        sequences.push(sequence.map_err(refused)?);
    }
    let step = match evaluate_step(&*objective.objective, &sequences) {
        Ok(step) => step,
        Err(ObjectiveError::InSequence { source, .. })
            if matches!(*source, ObjectiveError::NonUniformAdvantages { .. }) =>
        {
            return Ok(None);
        }
        Err(source) => return Err(refused(source)),
    };
    let mut ascent = vec![0.0; n];
    for (member, coefficients) in members.iter().zip(&step.gradients) {
        for (score, coefficient) in member.scores.iter().zip(coefficients) {
            ascent.iter_mut().zip(score).for_each(|(slot, part)| *slot -= coefficient * part);
        }
    }
    Ok(Some(ascent))
}

#[derive(Clone, Debug)]
struct Moments {
    first: Vec<f64>,
    /// E|g|².
    second: f64,
}

impl Moments {
    fn new(n: usize) -> Self {
        Self { first: vec![0.0; n], second: 0.0 }
    }

    fn add(&mut self, probability: f64, gradient: &[f64]) {
        self.first.iter_mut().zip(gradient).for_each(|(sum, part)| *sum += probability * part);
        self.second += probability * dot(gradient, gradient);
    }

    fn finish(self, objective: &'static str, credit: &'static str) -> Estimate {
        // Rounding may make the difference negative if the variance is 0.
        let variance = (self.second - dot(&self.first, &self.first)).max(0.0);
        Estimate { objective, credit, mean: self.first, variance }
    }
}

fn compare(problem: &'static str, estimate: &Estimate, truth: &[f64]) -> Measurement {
    let (norm, size) = (dot(truth, truth).sqrt(), dot(&estimate.mean, &estimate.mean).sqrt());
    let along = dot(&estimate.mean, truth);
    let scale = along / (norm * norm);
    let off = |scale: f64| {
        let parts = estimate.mean.iter().zip(truth).map(|(mean, truth)| mean - scale * truth);
        parts.map(|part| part * part).sum::<f64>().sqrt()
    };
    let is_zero = size <= ZERO * norm;
    Measurement {
        problem,
        objective: estimate.objective,
        credit: estimate.credit,
        scale,
        relative_bias: off(1.0) / norm,
        bend: if is_zero || scale <= 0.0 { 1.0 } else { off(scale) / size },
        cosine: (!is_zero).then(|| along / (norm * size)),
        relative_variance: (!is_zero).then(|| estimate.variance / (size * size)),
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Returns every multiset of `size` of the numbers below `n`, each in ascending order.
fn multisets(n: usize, size: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for _ in 0..size {
        let longer = |group: &Vec<usize>| {
            let group = group.clone();
            let least = group.last().copied().unwrap_or(0);
            (least..n).map(move |next| [group.as_slice(), &[next]].concat())
        };
        all = all.iter().flat_map(longer).collect();
    }
    all
}

/// Returns the number of distinct orders of an ascending multiset.
fn arrangements(group: &[usize]) -> f64 {
    let factorial = |n: usize| (1..=n).map(|factor| factor as f64).product::<f64>();
    let same = group.chunk_by(|a, b| a == b).map(|equal| factorial(equal.len()));
    factorial(group.len()) / same.product::<f64>()
}
