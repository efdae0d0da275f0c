use turnwise_environment::{Action, Demonstrator, Observation, Random};

/// Halves what is left, and now and then misses the middle a little.
///
/// Always the exact middle would be one path through each range. A policy that imitates that knows a path by heart; one that
/// imitates this has seen what to do off it.
#[derive(Debug)]
pub(crate) struct Halving {
    random: Random,
}

impl Halving {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Random::new(seed) }
    }

    /// The middle of what is left; one time in [`MISSES`] a number within a quarter of the range around it.
    fn near_the_middle(&mut self, low: i64, high: i64) -> i64 {
        let middle = i64::midpoint(low, high);
        if self.random.below(MISSES) > 0 {
            return middle;
        }
        let reach = high.abs_diff(low) / 8;
        middle - reach.cast_signed() + self.random.below(2 * reach + 1).cast_signed()
    }
}

/// How seldom the middle is missed.
const MISSES: u64 = 5;

impl Demonstrator for Halving {
    fn act(&mut self, observation: &Observation) -> Action {
        let (low, high) = range(text(observation)).unwrap_or_default();
        Action::text(self.near_the_middle(low, high).to_string())
    }
}

/// Says any number of the range, heedless of the hints.
#[derive(Debug)]
pub(crate) struct Uniform {
    random: Random,
    low: i64,
    high: i64,
}

impl Uniform {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), low: 0, high: 0 }
    }
}

impl Demonstrator for Uniform {
    fn act(&mut self, observation: &Observation) -> Action {
        if let Some(opening) = text(observation).strip_prefix("Guess ")
            && let Some((low, high)) = range(opening)
        {
            (self.low, self.high) = (low, high);
        }
        let n_numbers = self.high.abs_diff(self.low) + 1;
        let said = self.low + self.random.below(n_numbers).cast_signed();
        Action::text(said.to_string())
    }
}

/// What the environment says.
fn text(observation: &Observation) -> &str {
    observation.messages.last().map_or("", |message| message.content.as_str())
}

/// The range that an opening or a hint names: the one word with a dash in it.
fn range(text: &str) -> Option<(i64, i64)> {
    let (low, high) = text.split(' ').find_map(|word| word.split_once('-'))?;
    Some((low.parse().ok()?, high.parse().ok()?))
}
