use turnwise_environment::{Environment, Split, TaskKey, TaskSet, derive_seed};

use crate::{GuessGame, GuessSettings};

/// One task: a range, the secret number in it, and the turns to find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuessTask {
    /// The lowest possible secret.
    pub low: u32,
    /// The highest possible secret.
    pub high: u32,
    /// The secret number, from `low` to `high`.
    pub secret: u32,
    /// The number of answers that the agent has.
    pub turns: usize,
}

impl GuessTask {
    /// Returns the task's stable name.
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

/// The seed of the split. It determines which tasks are held out: a new value needs a new version.
const SPLIT: u64 = 0x6775_6573;

/// The games of one split, range by range, lowest secret first.
///
/// In each range a quarter of the secrets (rounded, at least one) is held out: those with the lowest hashes. Ranges
/// overlap, so the range that is left after some hints occurs in many games, and a number that is held out in one of
/// them is the secret in another. Otherwise training would teach the policy never to say it.
#[derive(Clone, Debug)]
pub struct GuessTasks {
    tasks: Vec<GuessTask>,
}

impl GuessTasks {
    /// Creates the tasks of a split from settings that pass [`GuessSettings::validate`].
    pub(crate) fn new(settings: &GuessSettings, split: Split) -> Self {
        let turns = settings.turns;
        let games = settings.bounds().flat_map(|(low, high)| {
            let secrets = part(low, high, split).into_iter();
            secrets.map(move |secret| GuessTask { low, high, secret, turns })
        });
        Self { tasks: games.collect() }
    }

    /// Returns the task with this index.
    ///
    /// # Panics
    /// When the index is out of range.
    #[must_use]
    pub fn task(&self, index: usize) -> GuessTask {
        self.tasks[index]
    }
}

/// Returns the secrets of one range in this split. The split does not depend on the number of turns.
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
