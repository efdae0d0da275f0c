use serde::{Deserialize, Serialize};
use turnwise_environment::EnvironmentError;

/// The largest number that may be secret: a text with more digits teaches nothing more.
const HIGHEST: u32 = 999;

/// How far the start of a range lies from the start of the one before.
const STRIDE: u32 = 10;

/// What games are played.
///
/// There are `span * ranges` tasks. An expert solves all of them when `span` is below 2 to the power of `turns`.
///
/// ```
/// use turnwise_guess::GuessSettings;
///
/// let short = GuessSettings { span: 10, turns: 4, ..GuessSettings::default() };
/// assert!(short.validate().is_ok());
/// assert!(GuessSettings { turns: 0, ..short }.validate().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuessSettings {
    /// How many numbers a range holds, at least 2.
    pub span: u32,
    /// How many ranges there are, at least 1; range `r`, counted from 0, starts at `1 + 10 r`.
    pub ranges: u32,
    /// How many answers the agent has, at least 1.
    pub turns: usize,
}

impl Default for GuessSettings {
    fn default() -> Self {
        Self { span: 40, ranges: 6, turns: 6 }
    }
}

impl GuessSettings {
    /// Whether games can be played with these settings.
    ///
    /// # Errors
    /// When a field is below its least value, or a number would be above 999.
    pub fn validate(&self) -> Result<(), EnvironmentError> {
        let refuse = |why: String| Err(EnvironmentError::new(format!("set up guess: {why}")));
        if self.span < 2 {
            return refuse(format!("span is {}, and a range holds at least 2 numbers", self.span));
        }
        if self.ranges < 1 {
            return refuse("ranges is 0, and there is at least 1".to_owned());
        }
        if self.turns < 1 {
            return refuse("turns is 0, and the agent has at least 1".to_owned());
        }
        let highest = u64::from(self.ranges - 1) * u64::from(STRIDE) + u64::from(self.span);
        if highest > u64::from(HIGHEST) {
            return refuse(format!("the highest number is {highest}, above {HIGHEST}"));
        }
        Ok(())
    }

    /// The lowest and the highest number of each range.
    pub(crate) fn bounds(&self) -> impl Iterator<Item = (u32, u32)> {
        let span = self.span;
        (0..self.ranges).map(move |range| (1 + range * STRIDE, range * STRIDE + span))
    }
}
