//! Find a hidden number from hints in a limited number of turns; bisecting is the skill.
//!
//! [`Guess`] is the suite: tasks in two splits, an expert that halves the range, a random baseline. The rules, the texts and a
//! transcript are in the crate's README.
//!
//! ```
//! use turnwise_environment::{Split, Suite};
//! use turnwise_guess::{Guess, GuessSettings};
//!
//! # fn main() -> Result<(), turnwise_environment::EnvironmentError> {
//! let guess = Guess::new(GuessSettings::default())?;
//! assert_eq!(guess.tasks(Split::Train).len() + guess.tasks(Split::HeldOut).len(), 880);
//! # Ok(())
//! # }
//! ```

mod game;
mod players;
mod settings;
mod suite;
mod tasks;

pub use game::GuessGame;
pub use settings::GuessSettings;
pub use suite::Guess;
pub use tasks::{GuessTask, GuessTasks};
