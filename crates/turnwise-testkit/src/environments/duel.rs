use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnwise_environment::{
    Action, Environment, EnvironmentError, Observation, Random, Seat, Step, derive_seed,
};

/// An environment with several seats that take turns and see a number each, which depends on the whole history.
///
/// Every seat acts once in a round. Each turn has a reward that depends on the history, and gives another one to the
/// seat that acts next; so any difference in any token of any seat shows in the rewards of all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Duel {
    /// The number of seats.
    pub seats: u32,
    /// The number of rounds.
    pub rounds: u32,
    history: u64,
    turn: u32,
}

impl Duel {
    /// Creates an episode of `rounds` rounds for `seats` seats.
    #[must_use]
    pub fn new(seats: u32, rounds: u32) -> Self {
        Self { seats, rounds, history: 0, turn: 0 }
    }

    fn seat(&self) -> Seat {
        Seat(self.turn % self.seats)
    }

    fn shown(&self) -> Observation {
        let number = self.history & 0xffff;
        Observation::from(format!("{number:04x}{}", self.seat())).to(self.seat())
    }
}

#[async_trait]
impl Environment for Duel {
    async fn reset(&mut self, seed: u64) -> Result<Observation, EnvironmentError> {
        self.history = derive_seed(seed, 0);
        Ok(self.shown())
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        let bytes = action.text.bytes();
        self.history = bytes.fold(self.history, |history, byte| derive_seed(history, byte.into()));
        self.turn += 1;
        let mut random = Random::new(self.history);
        let (reward, other) = (random.uniform(), random.uniform());
        let step = if self.turn == self.seats * self.rounds {
            Step::terminated(reward)
        } else {
            Step::next(self.shown()).reward(reward)
        };
        Ok(step.reward_of(self.seat(), other))
    }

    fn n_seats(&self) -> usize {
        self.seats as usize
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        Some(serde_json::to_vec(self).expect("plain data"))
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), EnvironmentError> {
        *self = serde_json::from_slice(snapshot)
            .map_err(|error| EnvironmentError::new("cannot restore a duel").caused_by(error))?;
        Ok(())
    }
}
