use std::ops::RangeInclusive;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnwise_environment::{Action, Answer, Environment, EnvironmentError, Observation, Step};

use crate::GuessTask;

/// One episode: the agent says numbers and learns whether the secret is higher or lower, and the range that is left.
///
/// The reward is 1 for the secret, and 0 when the turns are used up before; no other turn is scored.
///
/// # Example
///
/// ```
/// use turnwise_environment::{Environment, EnvironmentError, Step};
/// use turnwise_guess::{GuessGame, GuessTask};
///
/// async fn play() -> Result<(), EnvironmentError> {
///     let mut game = GuessGame::new(GuessTask { low: 1, high: 40, secret: 7, turns: 6 });
///     assert_eq!(game.reset(0).await?, "Guess 1-40 in 6.".into());
///     assert_eq!(game.step("20".into()).await?, Step::next("lower: 1-19"));
///     assert_eq!(game.step("7".into()).await?, Step::terminated(1.0));
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct GuessGame {
    task: GuessTask,
    state: State,
}

/// The part of an episode that changes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    turns_used: usize,
    /// The lowest number that no hint has ruled out.
    low: u32,
    /// The highest number that no hint has ruled out.
    high: u32,
}

impl GuessGame {
    /// Creates a game that has not begun.
    #[must_use]
    pub fn new(task: GuessTask) -> Self {
        Self { task, state: State { turns_used: 0, low: task.low, high: task.high } }
    }

    /// Answers a number that is not the secret, and narrows the range.
    fn hint(&mut self, said: i64) -> Step {
        let State { low, high, .. } = &mut self.state;
        let direction = if said < i64::from(self.task.secret) {
            *low = u32::try_from(said + 1).unwrap_or(0).max(*low);
            "higher"
        } else {
            *high = u32::try_from(said - 1).unwrap_or(u32::MAX).min(*high);
            "lower"
        };
        Step::next(format!("{direction}: {low}-{high}"))
    }
}

#[async_trait]
impl Environment for GuessGame {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        let GuessTask { low, high, turns, .. } = self.task;
        Ok(format!("Guess {low}-{high} in {turns}.").into())
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        self.state.turns_used += 1;
        let answer = match Answer::of(&action.text).integer() {
            Some(said) if said == i64::from(self.task.secret) => return Ok(Step::terminated(1.0)),
            Some(said) => self.hint(said),
            None => Step::next("Answer with a number.").faults(1),
        };
        let is_last = self.state.turns_used >= self.task.turns;
        Ok(if is_last { Step::terminated(0.0) } else { answer })
    }

    fn reward_range(&self) -> RangeInclusive<f64> {
        0.0..=1.0
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        serde_json::to_vec(&self.state).ok()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), EnvironmentError> {
        let refuse = || EnvironmentError::new("cannot restore a game of guess");
        let state: State =
            serde_json::from_slice(snapshot).map_err(|error| refuse().caused_by(error))?;
        let GuessTask { low, high, secret, turns } = self.task;
        let is_of_this_game =
            low <= state.low && state.low <= secret && secret <= state.high && state.high <= high;
        if state.turns_used >= turns || !is_of_this_game {
            return Err(refuse().caused_by("the snapshot is of another game"));
        }
        self.state = state;
        Ok(())
    }
}
