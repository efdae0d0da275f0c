use std::sync::Arc;

use turnwise_environment::{Demonstrator, EnvironmentError, Split, Suite, TaskSet};

use crate::players::{Anything, StepByStep};
use crate::{CalculatorSettings, CalculatorTasks};

/// The environment under its name: tasks in two splits, an expert that calls the tool step by step, and a player that
/// calls it with anything.
#[derive(Clone, Debug)]
pub struct Calculator {
    train: Arc<CalculatorTasks>,
    held_out: Arc<CalculatorTasks>,
    turns: usize,
}

impl Calculator {
    /// The episodes of these settings.
    ///
    /// # Errors
    /// When the settings do not hold up to [`CalculatorSettings::validate`], or allow so few expressions that a split is
    /// empty.
    ///
    /// # Example
    ///
    /// ```
    /// use turnwise_calculator::{Calculator, CalculatorSettings};
    ///
    /// let settings = CalculatorSettings::default();
    /// assert!(Calculator::new(settings).is_ok());
    /// let error = Calculator::new(CalculatorSettings { turns: Some(2), ..settings }).unwrap_err();
    /// assert!(error.to_string().contains("turns is 2"));
    /// ```
    pub fn new(settings: CalculatorSettings) -> Result<Self, EnvironmentError> {
        settings.validate()?;
        let (train, held_out) = CalculatorTasks::of_both_splits(&settings)?;
        let turns = settings.turn_limit();
        Ok(Self { train: Arc::new(train), held_out: Arc::new(held_out), turns })
    }
}

impl Suite for Calculator {
    fn name(&self) -> &'static str {
        "calculator"
    }

    fn description(&self) -> &'static str {
        "compute an expression step by step with a tool"
    }

    fn tasks(&self, split: Split) -> Arc<dyn TaskSet> {
        match split {
            Split::Train => Arc::<CalculatorTasks>::clone(&self.train),
            Split::HeldOut => Arc::<CalculatorTasks>::clone(&self.held_out),
        }
    }

    fn expert(&self, _seed: u64) -> Box<dyn Demonstrator> {
        Box::<StepByStep>::default()
    }

    fn random(&self, seed: u64) -> Box<dyn Demonstrator> {
        Box::new(Anything::new(seed))
    }

    fn max_turns(&self) -> usize {
        self.turns
    }
}
