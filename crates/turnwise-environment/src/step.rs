use serde::{Deserialize, Serialize};

use crate::{Observation, Seat, SeatReward};

/// A reward of an earlier turn that became known later.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LateReward {
    /// The turn of the seat that acts, counted from 0.
    pub turn: usize,
    /// The reward, which is added to that of the turn.
    pub reward: f64,
}

/// How an environment ends an episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// By its own rules: won, lost or over. The trajectory's outcome is `Done`.
    Terminated,
    /// By a clock or a limit of its own. The outcome is `Truncated`.
    Truncated,
    /// Because something broke that is not the agent's doing. The outcome is `InfraFault`, and no reward counts.
    Failed,
}

/// The result of one action.
///
/// A reward is the reward of this turn. `None` means *not scored*, which is not 0: an episode without a scored turn
/// (and without a rubric's score) has no reward at all.
///
/// ```
/// use turnwise_environment::Step;
///
/// let warmer = Step::next("Too cold.").reward(-0.25);
/// let won = Step::terminated(1.0);
/// assert!(matches!(won, Step::End { solved: true, .. }));
/// assert!(matches!(warmer, Step::Next { reward: Some(_), .. }));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The episode goes on.
    Next {
        /// What the agent sees next.
        observation: Observation,
        /// The reward of this turn.
        reward: Option<f64>,
        /// Mistakes of form in this turn (a call that could not be read, say); each costs one unit of the fault budget.
        faults: u32,
        /// Rewards of seats that did not act.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        others: Vec<SeatReward>,
        /// Rewards of earlier turns.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        late: Vec<LateReward>,
    },
    /// The episode is over.
    End {
        /// The reward of this turn.
        reward: Option<f64>,
        /// How it ended.
        ending: Ending,
        /// Whether the task was solved, for success rates.
        solved: bool,
        /// Rewards of seats that did not act.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        others: Vec<SeatReward>,
        /// Rewards of earlier turns.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        late: Vec<LateReward>,
    },
}

impl Step {
    /// Creates a step after which the episode goes on, with this turn not scored.
    #[must_use]
    pub fn next(observation: impl Into<Observation>) -> Self {
        Self::Next {
            observation: observation.into(),
            reward: None,
            faults: 0,
            others: Vec::new(),
            late: Vec::new(),
        }
    }

    /// Creates a step that ends the episode; it counts as solved if this turn's reward is 1 or more.
    ///
    /// Partial credit does not count as solved, nor does the last of several small rewards: call [`Step::solved`] where
    /// the reward does not decide it.
    ///
    /// ```
    /// use turnwise_environment::Step;
    ///
    /// assert!(matches!(Step::terminated(0.5), Step::End { solved: false, .. }));
    /// assert!(matches!(Step::terminated(0.5).solved(true), Step::End { solved: true, .. }));
    /// ```
    #[must_use]
    pub fn terminated(reward: f64) -> Self {
        Self::end(Some(reward), Ending::Terminated, reward >= 1.0)
    }

    /// Creates a step that ends the episode at the environment's own limit; the rewards given so far stay.
    #[must_use]
    pub fn truncated() -> Self {
        Self::end(None, Ending::Truncated, false)
    }

    /// Creates a step that ends the episode because of a failure that is not the agent's doing.
    #[must_use]
    pub fn failed() -> Self {
        Self::end(None, Ending::Failed, false)
    }

    fn end(reward: Option<f64>, ending: Ending, solved: bool) -> Self {
        Self::End { reward, ending, solved, others: Vec::new(), late: Vec::new() }
    }

    /// Sets the reward of this turn.
    #[must_use]
    pub fn reward(mut self, value: f64) -> Self {
        let (Self::Next { reward, .. } | Self::End { reward, .. }) = &mut self;
        *reward = Some(value);
        self
    }

    /// Adds a reward of a seat that did not act. At the end, a reward of 1 or more counts as solved for that seat.
    ///
    /// ```
    /// use turnwise_environment::{Seat, Step};
    ///
    /// let won = Step::terminated(1.0).reward_of(Seat(1), -1.0);
    /// assert!(matches!(won, Step::End { others, .. } if others[0].reward == -1.0));
    /// ```
    #[must_use]
    pub fn reward_of(mut self, seat: Seat, reward: f64) -> Self {
        let (Self::Next { others, .. } | Self::End { others, .. }) = &mut self;
        others.push(SeatReward { seat, reward, solved: reward >= 1.0 });
        self
    }

    /// Adds a reward to an earlier turn of the seat that acts, counted from 0.
    ///
    /// ```
    /// use turnwise_environment::Step;
    ///
    /// let judged = Step::terminated(1.0).reward_of_turn(0, 0.5);
    /// assert!(matches!(judged, Step::End { late, .. } if late[0].turn == 0));
    /// ```
    #[must_use]
    pub fn reward_of_turn(mut self, turn: usize, reward: f64) -> Self {
        let (Self::Next { late, .. } | Self::End { late, .. }) = &mut self;
        late.push(LateReward { turn, reward });
        self
    }

    /// Sets the number of mistakes of form; ignored on a step that ends the episode.
    #[must_use]
    pub fn faults(mut self, n: u32) -> Self {
        if let Self::Next { faults, .. } = &mut self {
            *faults = n;
        }
        self
    }

    /// Sets whether the ending counts as solved; ignored on a step that goes on.
    #[must_use]
    pub fn solved(mut self, value: bool) -> Self {
        if let Self::End { solved, .. } = &mut self {
            *solved = value;
        }
        self
    }
}
