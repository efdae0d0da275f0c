use std::ops::RangeInclusive;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnwise_environment::{
    Action, Answer, Environment, EnvironmentError, Observation, Services, Step, ToolSpec, Toolbox,
};

use crate::calc::{Calc, Call};
use crate::{CalculatorTask, Expression};

/// The reward of all intermediate results together.
const RESULTS: f64 = 0.5;

/// The reward of the right answer.
const ANSWER: f64 = 1.0 - RESULTS;

/// One episode: the agent calls the tool, reads its results, and says the answer.
///
/// Each *next* intermediate result that the tool gives brings its share of 0.5, once; the right answer brings 0.5.
///
/// # Example
///
/// ```
/// use turnwise_calculator::{CalculatorEpisode, CalculatorTask, Expression, Operation};
/// use turnwise_environment::{Environment, EnvironmentError, Step};
///
/// async fn answer_at_once() -> Result<(), EnvironmentError> {
///     let expression = Expression { first: 7, steps: vec![(Operation::Add, 5)] };
///     let mut episode = CalculatorEpisode::new(CalculatorTask { expression, turns: 4 });
///     assert_eq!(episode.reset(0).await?, "Compute 7 + 5, left to right.".into());
///     assert_eq!(episode.step("12".into()).await?, Step::terminated(0.5).solved(true));
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct CalculatorEpisode {
    task: CalculatorTask,
    tools: Toolbox,
    state: State,
}

/// The part of an episode that changes.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    turns_used: usize,
    /// The number of intermediate results that have earned their reward.
    n_results: usize,
}

impl CalculatorEpisode {
    /// Creates an episode that has not begun.
    #[must_use]
    pub fn new(task: CalculatorTask) -> Self {
        let tools = Toolbox::new(vec![Arc::new(Calc)]);
        Self { task, tools, state: State::default() }
    }

    fn expression(&self) -> &Expression {
        &self.task.expression
    }

    /// Ends the episode if this was the last turn; the turn keeps its reward.
    fn unless_last(&self, reward: f64, step: Step) -> Step {
        if self.state.turns_used < self.task.turns {
            step.reward(reward)
        } else {
            Step::terminated(reward).solved(false)
        }
    }

    /// Answers an action without calls.
    fn hear(&self, text: &str) -> Step {
        let answer = Answer::of(text);
        match answer.integer().filter(|_| answer.is_clear()) {
            Some(said) if said == self.expression().answer() => {
                Step::terminated(ANSWER).solved(true)
            }
            Some(_) => Step::terminated(0.0),
            None => {
                let complaint = Step::next("Call calc or answer with a number.").faults(1);
                self.unless_last(0.0, complaint)
            }
        }
    }

    /// Returns the reward for the calls of an action: a share for each call that is the next one of the expression.
    fn credit(&mut self, action: &Action) -> f64 {
        let before = self.state.n_results;
        let mut missing = self.task.expression.calls().skip(before).peekable();
        let calls = action.tool_calls().filter(|call| call.name == Calc::NAME);
        for call in calls.filter_map(|call| Call::read(&call.arguments).ok()) {
            if missing.next_if(|next| call.is_like(*next)).is_some() {
                self.state.n_results += 1;
            }
        }
        let n_new = (self.state.n_results - before) as f64;
        RESULTS * n_new / self.expression().steps.len().max(1) as f64
    }
}

#[async_trait]
impl Environment for CalculatorEpisode {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        Ok(opening(self.expression()).into())
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        self.state.turns_used += 1;
        if action.calls.is_empty() {
            return Ok(self.hear(&action.text));
        }
        let round = self.tools.answer(&action).await?;
        let reward = self.credit(&action);
        Ok(self.unless_last(reward, Step::next(round.messages).faults(round.faults)))
    }

    fn tools(&self) -> Vec<ToolSpec> {
        self.tools.specs()
    }

    fn connect(&mut self, services: &Services) {
        self.tools.connect(services);
    }

    fn reward_range(&self) -> RangeInclusive<f64> {
        0.0..=1.0
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        serde_json::to_vec(&self.state).ok()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), EnvironmentError> {
        let refuse = || EnvironmentError::new("cannot restore an episode of calculator");
        let state: State =
            serde_json::from_slice(snapshot).map_err(|error| refuse().caused_by(error))?;
        if state.turns_used >= self.task.turns || state.n_results > self.expression().steps.len() {
            return Err(refuse().caused_by("the snapshot is of a longer episode"));
        }
        self.state = state;
        Ok(())
    }
}

/// Returns the text of the first observation.
fn opening(expression: &Expression) -> String {
    format!("Compute {expression}, left to right.")
}

/// Parses the expression out of a text of [`opening`].
pub(crate) fn read_opening(text: &str) -> Option<Expression> {
    Expression::parse(text.strip_prefix("Compute ")?.strip_suffix(", left to right.")?)
}
