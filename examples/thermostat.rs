//! Find the setting of a thermostat that makes a room comfortable.

use turnwise::environment::{
    Action, Environment, EnvironmentError, Observation, Step, async_trait,
};

/// Reward 1 for a comfortable room, less 0.25 for each wrong setting before it.
#[derive(Clone, Debug)]
pub struct Thermostat {
    comfortable: u8,
    reward: f64,
}

impl Thermostat {
    /// A room that is comfortable at one setting, from 0 to 9.
    #[must_use]
    pub fn new(comfortable: u8) -> Self {
        Self { comfortable, reward: 1.0 }
    }
}

#[async_trait]
impl Environment for Thermostat {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        Ok("Choose a setting from 0 to 9.".into())
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        let complaint = match action.text.trim().parse::<u8>() {
            Ok(setting) if setting == self.comfortable => {
                return Ok(Step::terminated(self.reward).solved(true));
            }
            Ok(setting) if setting < self.comfortable => "Too cold.",
            Ok(_) => "Too warm.",
            Err(_) => "Answer with one digit.",
        };
        self.reward -= 0.25;
        Ok(if self.reward > 0.0 { Step::next(complaint) } else { Step::terminated(0.0) })
    }
}
