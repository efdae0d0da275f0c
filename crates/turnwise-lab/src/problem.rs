use crate::SoftmaxPolicy;

/// A state of a small decision problem, as a tree of what follows.
#[derive(Clone, Debug, PartialEq)]
pub enum Situation {
    /// The policy samples a token.
    Token {
        /// The decision whose logits apply; situations with the same number share logits and have equally many choices.
        decision: usize,
        /// The situation after each choice.
        choices: Vec<Situation>,
    },
    /// The turn ends.
    TurnEnd {
        /// The turn's reward.
        reward: f64,
        /// The situation after the turn.
        next: Box<Situation>,
    },
    /// The environment chooses, with these probabilities.
    Chance(Vec<(f64, Situation)>),
    /// The episode ends.
    Over,
}

impl Situation {
    /// Creates the end of a turn after which the episode continues.
    #[must_use]
    pub fn turn(reward: f64, next: Self) -> Self {
        Self::TurnEnd { reward, next: Box::new(next) }
    }

    /// Creates the end of the last turn.
    #[must_use]
    pub fn last_turn(reward: f64) -> Self {
        Self::turn(reward, Self::Over)
    }

    /// Creates a token sampled from the logits of `decision`.
    #[must_use]
    pub fn token(decision: usize, choices: Vec<Self>) -> Self {
        Self::Token { decision, choices }
    }

    /// Creates tokens whose choice has no effect.
    #[must_use]
    pub fn idle(decisions: &[usize], n_choices: usize, next: Self) -> Self {
        let before = |next: Self, &decision: &usize| Self::token(decision, vec![next; n_choices]);
        decisions.iter().rev().fold(next, before)
    }
}

/// A token: a decision and a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// The decision, an index into the policy's logits.
    pub decision: usize,
    /// The choice, an index into the decision's logits.
    pub choice: usize,
}

/// One turn of a trajectory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProblemTurn {
    /// The tokens that the policy sampled.
    pub tokens: Vec<Token>,
    /// The reward of the turn.
    pub reward: f64,
}

/// One possible course of an episode.
#[derive(Clone, Debug, PartialEq)]
pub struct ProblemTrajectory {
    /// The probability of the environment's choices, 0 to 1; the policy's part depends on the policy.
    pub chance: f64,
    /// The turns.
    pub turns: Vec<ProblemTurn>,
}

impl ProblemTrajectory {
    /// Iterates over every token, turn by turn.
    pub fn tokens(&self) -> impl Iterator<Item = Token> + '_ {
        self.turns.iter().flat_map(|turn| turn.tokens.iter().copied())
    }

    /// Returns the sum of the rewards.
    #[must_use]
    pub fn value(&self) -> f64 {
        self.turns.iter().map(|turn| turn.reward).sum()
    }

    /// Returns the probability of the trajectory, of the policy's and the environment's choices together.
    #[must_use]
    pub fn probability(&self, policy: &SoftmaxPolicy) -> f64 {
        self.chance * self.tokens().map(|token| policy.logprob(token)).sum::<f64>().exp()
    }
}

/// A decision problem whose trajectories can be enumerated, with a policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The name.
    pub name: &'static str,
    /// A one-line description.
    pub about: &'static str,
    /// The first situation of an episode.
    pub start: Situation,
    /// The policy, θ.
    pub policy: SoftmaxPolicy,
}

impl Problem {
    /// Returns every trajectory, in the order of the choices.
    #[must_use]
    pub fn trajectories(&self) -> Vec<ProblemTrajectory> {
        let mut found = Vec::new();
        walk(
            &self.start,
            &mut ProblemTrajectory { chance: 1.0, turns: vec![] },
            ProblemTurn::default(),
            &mut found,
        );
        found
    }

    /// Returns J(θ) = E\[reward\], by summing over the trajectories.
    #[must_use]
    pub fn value(&self, policy: &SoftmaxPolicy) -> f64 {
        let worth = |one: &ProblemTrajectory| one.probability(policy) * one.value();
        self.trajectories().iter().map(worth).sum()
    }

    /// Returns ∇J(θ) with respect to every logit, in the order of [`SoftmaxPolicy::flat`].
    #[must_use]
    pub fn true_gradient(&self, policy: &SoftmaxPolicy) -> Vec<f64> {
        let mut gradient = vec![0.0; policy.len()];
        for trajectory in self.trajectories() {
            let weight = trajectory.probability(policy) * trajectory.value();
            trajectory.tokens().for_each(|token| policy.add_score(token, weight, &mut gradient));
        }
        gradient
    }
}

fn walk(
    at: &Situation,
    past: &mut ProblemTrajectory,
    turn: ProblemTurn,
    found: &mut Vec<ProblemTrajectory>,
) {
    match at {
        Situation::Token { decision, choices } => {
            for (choice, next) in choices.iter().enumerate() {
                let mut turn = turn.clone();
                turn.tokens.push(Token { decision: *decision, choice });
                walk(next, past, turn, found);
            }
        }
        Situation::TurnEnd { reward, next } => {
            past.turns.push(ProblemTurn { reward: *reward, ..turn });
            walk(next, past, ProblemTurn::default(), found);
            past.turns.pop();
        }
        Situation::Chance(outcomes) => {
            let chance = past.chance;
            for (probability, next) in outcomes {
                past.chance = chance * probability;
                walk(next, past, turn.clone(), found);
            }
            past.chance = chance;
        }
        Situation::Over => found.push(past.clone()),
    }
}
