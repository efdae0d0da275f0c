use std::collections::BTreeSet;

use turnwise_environment::{
    Environment, EnvironmentError, Random, Split, TaskKey, TaskSet, derive_seed,
};

use crate::space::Space;
use crate::{CalculatorEpisode, CalculatorSettings, Expression};

/// The seed of the drawing of tasks. Another value is another version.
const DRAW: u64 = 0x6472_6177;

/// The seed of the split. It is part of what a task's split means: another value is another version.
const SPLIT: u64 = 0x7370_6c74;

/// One problem: an expression, and the turns to compute it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalculatorTask {
    /// What is to be computed.
    pub expression: Expression,
    /// How many turns the agent has.
    pub turns: usize,
}

impl CalculatorTask {
    /// The task's stable name.
    ///
    /// ```
    /// use turnwise_calculator::{CalculatorTask, Expression};
    ///
    /// let task = CalculatorTask { expression: Expression { first: 7, steps: vec![] }, turns: 5 };
    /// assert_eq!(task.key(), task.clone().key());
    /// assert_ne!(task.key(), CalculatorTask { turns: 6, ..task.clone() }.key());
    /// ```
    #[must_use]
    pub fn key(&self) -> TaskKey {
        TaskKey::of(&format!("compute {} in {}", self.expression, self.turns))
    }
}

/// The episodes of one split, in random order.
///
/// The expressions are drawn uniformly from all that the settings allow, without repetition and with a fixed seed. One in
/// four is held out, by a hash of the expression alone: an expression is in the same split in every settings.
#[derive(Clone, Debug)]
pub struct CalculatorTasks {
    tasks: Vec<CalculatorTask>,
}

impl CalculatorTasks {
    /// The tasks of both splits, the training tasks first, for settings that are valid.
    pub(crate) fn of_both_splits(
        settings: &CalculatorSettings,
    ) -> Result<(Self, Self), EnvironmentError> {
        let turns = settings.turn_limit();
        let tasks =
            draw(settings).into_iter().map(|expression| CalculatorTask { expression, turns });
        let (held_out, train): (Vec<_>, Vec<_>) =
            tasks.partition(|task| split_of(&task.expression) == Split::HeldOut);
        if held_out.is_empty() || train.is_empty() {
            let why = "set up calculator: one split has no tasks; allow more expressions";
            return Err(EnvironmentError::new(why));
        }
        Ok((Self { tasks: train }, Self { tasks: held_out }))
    }

    /// The task with this index.
    ///
    /// # Panics
    /// When there are not that many tasks.
    #[must_use]
    pub fn task(&self, index: usize) -> &CalculatorTask {
        &self.tasks[index]
    }
}

/// Distinct expressions in random order.
fn draw(settings: &CalculatorSettings) -> Vec<Expression> {
    let space = Space::new(settings);
    let mut random = Random::new(DRAW);
    let n_all = space.len();
    let n_drawn = n_all.min(settings.tasks as u64);
    // Floyd's sampling without replacement: exact in one pass, also when all are drawn.
    let mut drawn = BTreeSet::new();
    for last in n_all - n_drawn..n_all {
        let index = random.below(last + 1);
        if !drawn.insert(index) {
            drawn.insert(last);
        }
    }
    let mut drawn: Vec<u64> = drawn.into_iter().collect();
    random.shuffle(&mut drawn);
    drawn.into_iter().map(|index| space.expression(index)).collect()
}

/// Where an expression belongs, whatever else is drawn.
fn split_of(expression: &Expression) -> Split {
    let text = expression.to_string();
    let hash = text.bytes().fold(SPLIT, |hash, byte| derive_seed(hash, u64::from(byte)));
    if hash.is_multiple_of(4) { Split::HeldOut } else { Split::Train }
}

impl TaskSet for CalculatorTasks {
    fn name(&self) -> &'static str {
        "calculator"
    }

    fn len(&self) -> usize {
        self.tasks.len()
    }

    fn key(&self, index: usize) -> TaskKey {
        self.tasks[index].key()
    }

    fn environment(&self, index: usize) -> Box<dyn Environment> {
        Box::new(CalculatorEpisode::new(self.tasks[index].clone()))
    }
}
