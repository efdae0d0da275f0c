//! Agent programs as environments.

mod environment;
mod own_tasks;
mod process;
mod tasks;

pub use own_tasks::{OwnTasks, own_tasks};
pub use tasks::{ProgramSettings, ProgramTasks};
