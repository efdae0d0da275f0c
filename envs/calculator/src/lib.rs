//! Multi-step arithmetic through a tool that is called with JSON arguments.
//!
//! [`suite`] makes the suite: tasks in two splits, an expert that calls the tool step by step, a random baseline. The
//! crate's README contains the rules, the texts and a transcript.
//!
//! ```
//! use turnwise_calculator::CalculatorSettings;
//! use turnwise_environment::Split;
//!
//! # fn main() -> Result<(), turnwise_environment::EnvironmentError> {
//! let calculator = turnwise_calculator::suite(CalculatorSettings::default())?;
//! let n_tasks = [Split::Train, Split::HeldOut].map(|split| calculator.tasks(split).len());
//! assert_eq!(n_tasks.iter().sum::<usize>(), 2000);
//! # Ok(())
//! # }
//! ```

mod calc;
mod episode;
mod expression;
mod operation;
mod players;
mod settings;
mod space;
mod suite;
mod tasks;

pub use calc::Calc;
pub use episode::CalculatorEpisode;
pub use expression::Expression;
pub use operation::Operation;
pub use settings::CalculatorSettings;
pub use suite::suite;
pub use tasks::{CalculatorTask, CalculatorTasks};
