//! Rewards as a server sends them.

use serde::Deserialize;
use serde_json::Value;
use std::ops::RangeInclusive;
use turnwise_environment::EnvironmentError;

use super::fault::{malformed, shown};

/// How the rewards of a server's calls become those of an episode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RewardReading {
    /// Each is the reward of its own turn; the episode's reward is their sum.
    #[default]
    Turn,
    /// Each replaces those before it, as TRL reads them; the episode's reward is the last. A turn gets the difference
    /// from the one before, so that the turns still sum to it.
    Last,
}

/// Reads the rewards of one episode.
#[derive(Clone, Debug)]
pub(super) struct RewardReader {
    reading: RewardReading,
    total: f64,
}

impl RewardReader {
    pub(super) fn new(reading: RewardReading) -> Self {
        Self { reading, total: 0.0 }
    }

    /// Takes the reward of a call, and returns that of its turn.
    pub(super) fn take(&mut self, sent: &Value) -> Result<Option<f64>, EnvironmentError> {
        let Some(sent) = reward(sent)? else { return Ok(None) };
        let of_turn = match self.reading {
            RewardReading::Turn => sent,
            RewardReading::Last => sent - self.total,
        };
        self.total += of_turn;
        if !of_turn.is_finite() || !self.total.is_finite() {
            return Err(EnvironmentError::new("the rewards of the server sum to no finite number"));
        }
        Ok(Some(of_turn))
    }

    /// Returns the reward of the episode so far.
    pub(super) fn total(&self) -> f64 {
        self.total
    }
}

/// Returns the range of an episode's reward.
pub(super) fn reward_range(
    min: Option<f64>,
    max: Option<f64>,
) -> Result<RangeInclusive<f64>, EnvironmentError> {
    let (min, max) = (min.unwrap_or(f64::MIN), max.unwrap_or(f64::MAX));
    if min <= max {
        Ok(min..=max)
    } else {
        Err(EnvironmentError::new(format!("`reward_min` {min} is not below `reward_max` {max}")))
    }
}

/// Adds the reward of a call to that of its turn.
pub(super) fn sum(rewards: [Option<f64>; 2]) -> Option<f64> {
    rewards.into_iter().flatten().reduce(|sum, part| sum + part)
}

/// Reads a reward: a number, or a boolean as 0 or 1, or null for a turn that is not scored.
fn reward(sent: &Value) -> Result<Option<f64>, EnvironmentError> {
    match sent {
        Value::Null => Ok(None),
        Value::Bool(is_one) => Ok(Some(f64::from(u8::from(*is_one)))),
        Value::Number(number) => match number.as_f64().filter(|number| number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(malformed("a step", format!("its reward {number} is not finite"))),
        },
        other => {
            let other = shown(&other.to_string());
            Err(malformed("a step", format!("its reward {other} is no number")))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_reward_is_a_number_a_boolean_or_none() {
        for (sent, expected) in [
            (json!(null), None),
            (json!(true), Some(1.0)),
            (json!(false), Some(0.0)),
            (json!(-2), Some(-2.0)),
            (json!(0.25), Some(0.25)),
        ] {
            assert_eq!(reward(&sent).unwrap(), expected, "{sent}");
        }
        for sent in [json!("1.0"), json!("NaN"), json!([1]), json!({})] {
            assert!(reward(&sent).is_err(), "{sent}");
        }
    }

    #[test]
    fn the_rewards_of_turns_sum_to_that_of_the_episode() {
        let read = |reading| {
            let mut reader = RewardReader::new(reading);
            let sent = [json!(0.5), json!(null), json!(0.25), json!(1)];
            let turns = sent.map(|sent| reader.take(&sent).unwrap());
            (turns, reader.total())
        };
        let (turns, total) = read(RewardReading::Turn);
        assert_eq!((turns, total), ([Some(0.5), None, Some(0.25), Some(1.0)], 1.75));
        let (turns, total) = read(RewardReading::Last);
        assert_eq!((turns, total), ([Some(0.5), None, Some(-0.25), Some(0.75)], 1.0));
    }

    #[test]
    fn rewards_that_overflow_are_the_servers_fault() {
        let mut reader = RewardReader::new(RewardReading::Turn);
        assert!(reader.take(&json!(f64::MAX)).is_ok());
        assert!(reader.take(&json!(f64::MAX)).is_err());
    }
}
