//! Find a hidden number from hints in a limited number of turns; bisecting is the skill.
//!
//! [`suite`] makes the suite: tasks in two splits, an expert that halves the range, a random baseline. The crate's
//! README contains the rules, the texts and a transcript.
//!
//! ```
//! use turnwise_environment::Split;
//! use turnwise_guess::GuessSettings;
//!
//! # fn main() -> Result<(), turnwise_environment::EnvironmentError> {
//! let guess = turnwise_guess::suite(GuessSettings::default())?;
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
pub use suite::suite;
pub use tasks::{GuessTask, GuessTasks};
