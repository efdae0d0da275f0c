use turnwise_environment::{EnvironmentError, Suite};

use crate::players::{Anything, StepByStep};
use crate::{CalculatorSettings, CalculatorTasks};

const INSTRUCTIONS: &str = "\
    Compute an expression strictly from left to right, without precedence of operations. \
    Call the tool calc for one operation at a time, and use its result in the next call. \
    When no operation is left, answer with the last result alone.";

/// Creates the suite of the calculator: tasks in two splits, an expert that calls the tool step by step, and a player
/// that makes random calls.
///
/// # Errors
/// When the settings fail [`CalculatorSettings::validate`], or allow so few expressions that a split is empty.
///
/// # Example
///
/// ```
/// use turnwise_calculator::{CalculatorSettings, suite};
///
/// let settings = CalculatorSettings::default();
/// assert!(suite(settings).is_ok());
/// let error = suite(CalculatorSettings { turns: Some(2), ..settings }).unwrap_err();
/// assert!(error.to_string().contains("turns is 2"));
/// ```
pub fn suite(settings: CalculatorSettings) -> Result<Suite, EnvironmentError> {
    settings.validate()?;
    let (train, held_out) = CalculatorTasks::of_both_splits(&settings)?;
    Ok(Suite::new("calculator", train, held_out)
        .description("compute an expression step by step with a tool")
        .instructions(INSTRUCTIONS)
        .expert(|_seed| StepByStep::default())
        .random(Anything::new)
        .max_turns(settings.turn_limit()))
}
