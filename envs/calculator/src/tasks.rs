use std::collections::BTreeSet;

use turnwise_environment::{
    Environment, EnvironmentError, Random, Split, TaskKey, TaskSet, derive_seed,
};

use crate::space::Space;
use crate::{CalculatorEpisode, CalculatorSettings, Expression};

/// The seed of the choice of tasks. A new value needs a new version.
const DRAW: u64 = 0x6472_6177;

/// The seed of the split. It determines which tasks are held out: a new value needs a new version.
const SPLIT: u64 = 0x7370_6c74;

/// One task: an expression, and the turns to compute it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalculatorTask {
    /// The expression to compute.
    pub expression: Expression,
    /// The number of turns that the agent has.
    pub turns: usize,
}

impl CalculatorTask {
    /// Returns the task's stable name.
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

/// The tasks of one split, in random order.
///
/// The expressions are chosen uniformly from all that the settings allow, without repetition and with a fixed seed. One
/// in four is held out, by a hash of the expression alone: an expression is in the same split under all settings.
#[derive(Clone, Debug)]
pub struct CalculatorTasks {
    tasks: Vec<CalculatorTask>,
}

impl CalculatorTasks {
    /// Creates the tasks of both splits from valid settings, the training tasks first.
    pub(crate) fn of_both_splits(
        settings: &CalculatorSettings,
    ) -> Result<(Self, Self), EnvironmentError> {
        let turns = settings.turn_limit();
        let tasks =
            draw(settings).into_iter().map(|expression| CalculatorTask { expression, turns });
        let (held_out, train): (Vec<_>, Vec<_>) =
            tasks.partition(|task| split_of(&task.expression) == Split::HeldOut);
        if held_out.is_empty() || train.is_empty() {
            let why = "cannot set up calculator: one split has no tasks; allow more expressions";
            return Err(EnvironmentError::new(why));
        }
        Ok((Self { tasks: train }, Self { tasks: held_out }))
    }

    /// Returns the task with this index.
    ///
    /// # Panics
    /// When the index is out of range.
    #[must_use]
    pub fn task(&self, index: usize) -> &CalculatorTask {
        &self.tasks[index]
    }
}

/// Chooses distinct expressions, in random order.
fn draw(settings: &CalculatorSettings) -> Vec<Expression> {
    let space = Space::new(settings);
    let mut random = Random::new(DRAW);
    let n_all = space.len();
    let n_drawn = n_all.min(settings.tasks as u64);
    // Floyd's sampling without replacement: exact in one pass, even when every expression is chosen.
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

/// Returns the split of an expression, which does not depend on the other expressions.
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
