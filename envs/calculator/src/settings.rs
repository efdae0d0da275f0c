use serde::{Deserialize, Serialize};
use turnwise_environment::EnvironmentError;

/// The settings of the calculator: which expressions, and how many turns.
///
/// ```
/// use turnwise_calculator::CalculatorSettings;
///
/// let long = CalculatorSettings { operations: 4, ..CalculatorSettings::default() };
/// assert!(long.validate().is_ok());
/// assert_eq!(long.turn_limit(), 7);
/// assert!(CalculatorSettings { operations: 0, ..long }.validate().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CalculatorSettings {
    /// The number of operations in an expression, 1 to 6.
    pub operations: usize,
    /// The largest operand, 2 to 20; the smallest is 1.
    pub max_operand: u32,
    /// The largest result of any operation, `max_operand` to 999; the smallest is 0.
    pub max_value: u32,
    /// The number of expressions in both splits together, up to 100,000; all expressions if there are fewer.
    pub tasks: usize,
    /// How many turns the agent has, at least one for each operation and one for the answer; by default two more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turns: Option<usize>,
}

impl Default for CalculatorSettings {
    fn default() -> Self {
        Self { operations: 2, max_operand: 9, max_value: 99, tasks: 2000, turns: None }
    }
}

impl CalculatorSettings {
    /// Returns the number of turns that the agent has.
    #[must_use]
    pub fn turn_limit(&self) -> usize {
        self.turns.unwrap_or(self.operations + 3)
    }

    /// Checks that episodes can be played with these settings.
    ///
    /// # Errors
    /// When a field is outside its range.
    pub fn validate(&self) -> Result<(), EnvironmentError> {
        let refuse =
            |why: String| Err(EnvironmentError::new(format!("cannot set up calculator: {why}")));
        let Self { operations, max_operand, max_value, tasks, .. } = *self;
        if !(1..=6).contains(&operations) {
            return refuse(format!("operations is {operations}, outside 1 to 6"));
        }
        if !(2..=20).contains(&max_operand) {
            return refuse(format!("max_operand is {max_operand}, outside 2 to 20"));
        }
        if !(max_operand..=999).contains(&max_value) {
            return refuse(format!("max_value is {max_value}, outside {max_operand} to 999"));
        }
        if !(2..=100_000).contains(&tasks) {
            return refuse(format!("tasks is {tasks}, outside 2 to 100,000"));
        }
        let turns = self.turn_limit();
        if turns <= operations {
            return refuse(format!(
                "turns is {turns}, too few for {operations} calls and an answer"
            ));
        }
        Ok(())
    }
}
