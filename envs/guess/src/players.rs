use turnwise_environment::{Action, Demonstrator, Observation, Random};

/// The expert: it halves the remaining range, and sometimes misses the middle a little.
///
/// The exact middle every time would be one path through each range, and a policy that imitates it would memorise that
/// path. With small misses the policy also learns what to do off the path.
#[derive(Debug)]
pub(crate) struct Halving {
    random: Random,
}

impl Halving {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Random::new(seed) }
    }

    /// Returns the middle of the remaining range; one time in [`MISSES`] a number within a quarter of the range around
    /// it.
    fn near_the_middle(&mut self, low: i64, high: i64) -> i64 {
        let middle = i64::midpoint(low, high);
        if self.random.below(MISSES) > 0 {
            return middle;
        }
        let reach = high.abs_diff(low) / 8;
        middle - reach.cast_signed() + self.random.below(2 * reach + 1).cast_signed()
    }
}

/// The middle is missed one time in this many.
const MISSES: u64 = 5;

impl Demonstrator for Halving {
    fn act(&mut self, observation: &Observation) -> Action {
        let (low, high) = range(text(observation)).unwrap_or_default();
        Action::text(self.near_the_middle(low, high).to_string())
    }
}

/// The random player: it says random numbers of the first range and ignores the hints.
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

/// Returns the environment's last text.
fn text(observation: &Observation) -> &str {
    observation.messages.last().map_or("", |message| message.content.as_str())
}

/// Parses the range in an opening or a hint: the one word with a dash.
fn range(text: &str) -> Option<(i64, i64)> {
    let (low, high) = text.split(' ').find_map(|word| word.split_once('-'))?;
    Some((low.parse().ok()?, high.parse().ok()?))
}
