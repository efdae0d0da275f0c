use turnwise_environment::{EnvironmentError, Split, Suite};

use crate::players::{Halving, Uniform};
use crate::{GuessSettings, GuessTasks};

const INSTRUCTIONS: &str = "\
    You play a game: find a secret whole number in the given range, in the given number of guesses. \
    After each wrong guess you are told whether the secret is higher or lower, and the range that is left. \
    Guess the middle of that range. Answer with one number and nothing else.";

/// Creates the suite of the game: tasks in two splits, an expert that halves the range, and a player that guesses at
/// random.
///
/// # Errors
/// When the settings fail [`GuessSettings::validate`].
///
/// # Example
///
/// ```
/// use turnwise_guess::{GuessSettings, suite};
///
/// assert!(suite(GuessSettings::default()).is_ok());
/// let error = suite(GuessSettings { span: 1, ..GuessSettings::default() }).unwrap_err();
/// assert!(error.to_string().contains("span is 1"));
/// ```
pub fn suite(settings: GuessSettings) -> Result<Suite, EnvironmentError> {
    settings.validate()?;
    let tasks = |split| GuessTasks::new(&settings, split);
    Ok(Suite::new("guess", tasks(Split::Train), tasks(Split::HeldOut))
        .description("find a hidden number from hints")
        .instructions(INSTRUCTIONS)
        .expert(Halving::new)
        .random(Uniform::new)
        .max_turns(settings.turns))
}
