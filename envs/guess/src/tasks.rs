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
}

/// The seed of the split. It is part of what a task's split means: another value is another version.
const SPLIT: u64 = 0x6775_6573;

/// The games of one split, range by range, lowest secret first.
///
/// In each range a quarter of the secrets (rounded, at least one) is held out: those whose hash is lowest. Ranges overlap, so
/// that what is left after some hints is left in many games, and a number that is held out in one of them is the secret in
/// another; otherwise training would reward never to say it.
#[derive(Clone, Debug)]
pub struct GuessTasks {
    tasks: Vec<GuessTask>,
}

impl GuessTasks {
    /// The tasks of a split, for settings that hold up to [`GuessSettings::validate`].
    pub(crate) fn new(settings: &GuessSettings, split: Split) -> Self {
        let turns = settings.turns;
        let games = settings.bounds().flat_map(|(low, high)| {
            let secrets = part(low, high, split).into_iter();
            secrets.map(move |secret| GuessTask { low, high, secret, turns })
        });
        Self { tasks: games.collect() }
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

/// The secrets of one range that are in this split. The turns do not count: a number held out at six is held out at five.
fn part(low: u32, high: u32, split: Split) -> Vec<u32> {
    let of_range = derive_seed(derive_seed(SPLIT, u64::from(low)), u64::from(high));
    let mut secrets: Vec<u32> = (low..=high).collect();
    secrets.sort_by_key(|secret| derive_seed(of_range, u64::from(*secret)));
    let n_held_out = ((secrets.len() + 2) / 4).max(1);
    let mut part = match split {
        Split::HeldOut => secrets[..n_held_out].to_vec(),
        Split::Train => secrets[n_held_out..].to_vec(),
    };
    part.sort_unstable();
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
