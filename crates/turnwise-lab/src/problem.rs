use crate::Policy;

/// Where an episode stands: what happens next in a small decision problem, as a tree.
#[derive(Clone, Debug, PartialEq)]
pub enum Situation {
    /// The policy draws a token.
    Token {
        /// Whose logits it is drawn from; situations with one number share them, and have as many choices.
        decision: usize,
        /// What each choice leads to.
        choices: Vec<Situation>,
    },
    /// The turn is over.
    TurnEnd {
        /// Its reward.
        reward: f64,
        /// What comes then.
        next: Box<Situation>,
    },
    /// The environment decides, with these probabilities.
    Chance(Vec<(f64, Situation)>),
    /// The episode is over.
    Over,
}

impl Situation {
    /// The end of a turn, after which the episode goes on.
    #[must_use]
    pub fn turn(reward: f64, next: Self) -> Self {
        Self::TurnEnd { reward, next: Box::new(next) }
    }

    /// The end of the last turn.
    #[must_use]
    pub fn last_turn(reward: f64) -> Self {
        Self::turn(reward, Self::Over)
    }

    /// A token drawn from the logits of `decision`.
    #[must_use]
    pub fn token(decision: usize, choices: Vec<Self>) -> Self {
        Self::Token { decision, choices }
    }

    /// Tokens whose choice changes nothing.
    #[must_use]
    pub fn idle(decisions: &[usize], n_choices: usize, next: Self) -> Self {
        let before = |next: Self, &decision: &usize| Self::token(decision, vec![next; n_choices]);
        decisions.iter().rev().fold(next, before)
    }
}

/// A token: which decision, and what was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// The decision, an index into the policy's logits.
    pub decision: usize,
    /// The choice, an index into the decision's logits.
    pub choice: usize,
}

/// One turn of a trajectory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Turn {
    /// What the policy drew.
    pub tokens: Vec<Token>,
    /// What it brought.
    pub reward: f64,
}

/// One of the ways an episode can go.
#[derive(Clone, Debug, PartialEq)]
pub struct Trajectory {
    /// The probability of what the environment did, 0 to 1; the policy's part depends on the policy.
    pub chance: f64,
    /// The turns.
    pub turns: Vec<Turn>,
}

impl Trajectory {
    /// Every token, turn by turn.
    pub fn tokens(&self) -> impl Iterator<Item = Token> + '_ {
        self.turns.iter().flat_map(|turn| turn.tokens.iter().copied())
    }

    /// The sum of the rewards.
    #[must_use]
    pub fn value(&self) -> f64 {
        self.turns.iter().map(|turn| turn.reward).sum()
    }

    /// How probable it is, by the policy and the environment together.
    #[must_use]
    pub fn probability(&self, policy: &Policy) -> f64 {
        self.chance * self.tokens().map(|token| policy.logprob(token)).sum::<f64>().exp()
    }
}

/// A decision problem whose trajectories can be counted, with the policy it is looked at under.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The name.
    pub name: &'static str,
    /// What it shows, in a line.
    pub about: &'static str,
    /// Where an episode begins.
    pub start: Situation,
    /// θ.
    pub policy: Policy,
}

impl Problem {
    /// Every trajectory, in the order of the choices.
    #[must_use]
    pub fn trajectories(&self) -> Vec<Trajectory> {
        let mut found = Vec::new();
        walk(
            &self.start,
            &mut Trajectory { chance: 1.0, turns: vec![] },
            Turn::default(),
            &mut found,
        );
        found
    }

    /// J(θ) = E\[reward\], by summing over the trajectories.
    #[must_use]
    pub fn value(&self, policy: &Policy) -> f64 {
        let worth = |one: &Trajectory| one.probability(policy) * one.value();
        self.trajectories().iter().map(worth).sum()
    }

    /// ∇J(θ) with respect to every logit, in the order of [`Policy::flat`].
    #[must_use]
    pub fn true_gradient(&self, policy: &Policy) -> Vec<f64> {
        let mut gradient = vec![0.0; policy.len()];
        for trajectory in self.trajectories() {
            let weight = trajectory.probability(policy) * trajectory.value();
            trajectory.tokens().for_each(|token| policy.add_score(token, weight, &mut gradient));
        }
        gradient
    }
}

fn walk(at: &Situation, past: &mut Trajectory, turn: Turn, found: &mut Vec<Trajectory>) {
    match at {
        Situation::Token { decision, choices } => {
            for (choice, next) in choices.iter().enumerate() {
                let mut turn = turn.clone();
                turn.tokens.push(Token { decision: *decision, choice });
                walk(next, past, turn, found);
            }
        }
        Situation::TurnEnd { reward, next } => {
            past.turns.push(Turn { reward: *reward, ..turn });
            walk(next, past, Turn::default(), found);
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
