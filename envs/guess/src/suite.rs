use std::sync::Arc;

use turnwise_environment::{Demonstrator, EnvironmentError, Split, Suite, TaskSet};

use crate::players::{Halving, Uniform};
use crate::{GuessSettings, GuessTasks};

/// The game under its name: tasks in two splits, an expert that halves the range, and a player that guesses at random.
#[derive(Clone, Debug)]
pub struct Guess {
    train: Arc<GuessTasks>,
    held_out: Arc<GuessTasks>,
    turns: usize,
}

impl Guess {
    /// The games of these settings.
    ///
    /// # Errors
    /// When the settings do not hold up to [`GuessSettings::validate`].
    ///
    /// # Example
    ///
    /// ```
    /// use turnwise_guess::{Guess, GuessSettings};
    ///
    /// assert!(Guess::new(GuessSettings::default()).is_ok());
    /// let error = Guess::new(GuessSettings { span: 1, ..GuessSettings::default() }).unwrap_err();
    /// assert!(error.to_string().contains("span is 1"));
    /// ```
    pub fn new(settings: GuessSettings) -> Result<Self, EnvironmentError> {
        settings.validate()?;
        let GuessSettings { turns, .. } = settings;
        let tasks = |split| Arc::new(GuessTasks::new(&settings, split));
        Ok(Self { train: tasks(Split::Train), held_out: tasks(Split::HeldOut), turns })
    }
}

impl Suite for Guess {
    fn name(&self) -> &'static str {
        "guess"
    }

    fn description(&self) -> &'static str {
        "find a hidden number from hints"
    }

    fn tasks(&self, split: Split) -> Arc<dyn TaskSet> {
        match split {
            Split::Train => Arc::<GuessTasks>::clone(&self.train),
            Split::HeldOut => Arc::<GuessTasks>::clone(&self.held_out),
        }
    }

    fn expert(&self, seed: u64) -> Box<dyn Demonstrator> {
        Box::new(Halving::new(seed))
    }

    fn random(&self, seed: u64) -> Box<dyn Demonstrator> {
        Box::new(Uniform::new(seed))
    }

    fn max_turns(&self) -> usize {
        self.turns
    }
}
