use turnwise_environment::{Environment, Split, TaskKey, TaskSet, derive_seed};

use crate::{GuessGame, GuessSettings};

/// One problem: a range, the number hidden in it, and the turns to find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuessTask {
    /// The lowest number the secret can be.
    pub low: u32,
    /// The highest number the secret can be.
    pub high: u32,
    /// The hidden number, from `low` to `high`.
    pub secret: u32,
    /// How many answers the agent has.
    pub turns: usize,
}

impl GuessTask {
    /// The task's stable name.
    ///
    /// ```
    /// use turnwise_guess::GuessTask;
    ///
    /// let task = GuessTask { low: 1, high: 40, secret: 7, turns: 6 };
    /// assert_eq!(task.key(), task.clone().key());
    /// assert_ne!(task.key(), GuessTask { secret: 8, ..task }.key());
    /// ```
    #[must_use]
    pub fn key(&self) -> TaskKey {
        let Self { low, high, secret, turns } = self;
        TaskKey::of(&format!("guess {low}-{high} secret {secret} in {turns}"))
    }

    /// Where the task stands when tasks are put in an order that has nothing to do with their numbers.
    ///
    /// The turns do not count, so that a number held out at six turns is held out at five as well.
    fn hash(&self) -> u64 {
        let content = [self.low, self.high, self.secret];
        content.iter().fold(SPLIT, |hash, number| derive_seed(hash, u64::from(*number)))
    }
}

/// The seed of the split. It is part of what a task's split means: another value is another version.
const SPLIT: u64 = 0x6775_6573;

/// The games of one split, range by range, lowest secret first.
///
/// In each range a quarter of the secrets (rounded, at least one) is held out: those whose hash is lowest.
#[derive(Clone, Debug)]
pub struct GuessTasks {
    tasks: Vec<GuessTask>,
}

impl GuessTasks {
    /// The tasks of a split, for settings that hold up to [`GuessSettings::validate`].
    pub(crate) fn new(settings: &GuessSettings, split: Split) -> Self {
        let turns = settings.turns;
        let ranges = settings.bounds().map(|(low, high)| {
            (low..=high).map(|secret| GuessTask { low, high, secret, turns }).collect()
        });
        Self { tasks: ranges.flat_map(|range| part(range, split)).collect() }
    }

    /// The task with this index.
    ///
    /// # Panics
    /// When there are not that many tasks.
    #[must_use]
    pub fn task(&self, index: usize) -> GuessTask {
        self.tasks[index]
    }
}

/// The tasks of one range that are in this split.
fn part(mut range: Vec<GuessTask>, split: Split) -> Vec<GuessTask> {
    range.sort_by_key(GuessTask::hash);
    let n_held_out = ((range.len() + 2) / 4).max(1);
    let mut part = match split {
        Split::HeldOut => range[..n_held_out].to_vec(),
        Split::Train => range[n_held_out..].to_vec(),
    };
    part.sort_by_key(|task| task.secret);
    part
}

impl TaskSet for GuessTasks {
    fn name(&self) -> &'static str {
        "guess"
    }

    fn len(&self) -> usize {
        self.tasks.len()
    }

    fn key(&self, index: usize) -> TaskKey {
        self.tasks[index].key()
    }

    fn environment(&self, index: usize) -> Box<dyn Environment> {
        Box::new(GuessGame::new(self.tasks[index]))
    }
}
