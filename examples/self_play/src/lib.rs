//! Nim: two players take one to three stones in turn, and the player who takes the last stone wins.

use turnwise::environment::{
    Action, Demonstrator, Environment, EnvironmentError, Observation, Random, Seat, Step, Suite,
    async_trait,
};

/// One game.
#[derive(Clone, Debug)]
pub struct Nim {
    stones: u32,
    seat: Seat,
}

/// The largest pile.
const STONES: u32 = 20;

impl Nim {
    /// Returns the game under its name, with every pile from 4 stones on, a quarter of them held out.
    #[must_use]
    pub fn suite() -> Suite {
        let games = (4..=STONES).map(|stones| Self { stones, seat: Seat(0) });
        Suite::divided("nim", games.collect::<Vec<_>>(), 0.25)
            .description("take one to three stones in turn; the last stone wins")
            .max_turns(STONES as usize)
            .expert(|seed| Player { random: Random::new(seed), skill: 1.0 })
            .random(|seed| Player { random: Random::new(seed), skill: 0.0 })
    }

    /// Returns what the player sees who moves next.
    fn shown(&self) -> Observation {
        Observation::from(format!("{} stones", self.stones)).to(self.seat)
    }
}

#[async_trait]
impl Environment for Nim {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        Ok(self.shown())
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        let other = Seat(1 - self.seat.0);
        match action.text.trim().parse() {
            Ok(taken) if (1..=3.min(self.stones)).contains(&taken) => self.stones -= taken,
            // An impossible move loses the game, so that every episode ends.
            _ => return Ok(Step::terminated(0.0).reward_of(other, 1.0)),
        }
        if self.stones == 0 {
            return Ok(Step::terminated(1.0).reward_of(other, 0.0));
        }
        self.seat = other;
        Ok(Step::next(self.shown()))
    }

    fn n_seats(&self) -> usize {
        2
    }

    fn reward_range(&self) -> std::ops::RangeInclusive<f64> {
        0.0..=1.0
    }
}

/// A player who makes the best move with a probability of `skill`, and else any possible one.
struct Player {
    random: Random,
    skill: f64,
}

impl Demonstrator for Player {
    fn act(&mut self, observation: &Observation) -> Action {
        let text = observation.messages.last().map_or("", |message| &message.content);
        let stones: u32 = text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(1);
        let any = 1 + self.random.below(u64::from(stones.min(3))) as u32;
        let knows = self.random.uniform() < self.skill;
        // The other player loses with a multiple of four.
        let best = if stones.is_multiple_of(4) { any } else { stones % 4 };
        Action::text(if knows { best } else { any }.to_string())
    }
}
