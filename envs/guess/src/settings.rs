use serde::{Deserialize, Serialize};
use turnwise_environment::EnvironmentError;

/// The limit of `numbers`; it already allows over a million tasks at the smallest span.
const HIGHEST: u32 = 200;

/// The settings of the game.
///
/// A task is a range within `1..=numbers` that holds at least `span` numbers, and a secret in it; all such pairs are
/// tasks. They can all be solved if `numbers` is below 2 to the power of `turns`. The expert, which sometimes misses
/// the middle, always solves them with 4, 5, 6 or 7 turns for at most 13, 23, 39 or 64 numbers.
///
/// ```
/// use turnwise_guess::GuessSettings;
///
/// let short = GuessSettings { numbers: 10, span: 8, turns: 4 };
/// assert!(short.validate().is_ok());
/// assert!(GuessSettings { turns: 0, ..short }.validate().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuessSettings {
    /// The highest number, at most 200.
    pub numbers: u32,
    /// The least size of a range, from 2 to `numbers`.
    pub span: u32,
    /// The number of answers that the agent has, at least 1.
    pub turns: usize,
}

impl Default for GuessSettings {
    fn default() -> Self {
        Self { numbers: 20, span: 10, turns: 5 }
    }
}

impl GuessSettings {
    /// Checks that games can be played with these settings.
    ///
    /// # Errors
    /// When a field is outside its bounds.
    pub fn validate(&self) -> Result<(), EnvironmentError> {
        let refuse =
            |why: String| Err(EnvironmentError::new(format!("cannot set up guess: {why}")));
        if self.numbers > HIGHEST {
            return refuse(format!("numbers is {}, above {HIGHEST}", self.numbers));
        }
        if self.span < 2 || self.span > self.numbers {
            return refuse(format!(
                "span is {}, and must lie from 2 to numbers, {}",
                self.span, self.numbers
            ));
        }
        if self.turns < 1 {
            return refuse("turns is 0, and the agent has at least 1".to_owned());
        }
        Ok(())
    }

    /// Returns the lowest and the highest number of each range.
    pub(crate) fn bounds(&self) -> impl Iterator<Item = (u32, u32)> {
        let Self { numbers, span, .. } = *self;
        (1..=numbers + 1 - span)
            .flat_map(move |low| (low + span - 1..=numbers).map(move |high| (low, high)))
    }
}
