use turnwise_environment::{
    Action, CallAttempt, Demonstrator, Observation, Random, Role, ToolCall,
};

use crate::calc::{Calc, Call};
use crate::episode::read_opening;
use crate::{Expression, Operation};

/// The expert: it calls the tool for each operation with the previous result, then answers with the last result.
#[derive(Debug, Default)]
pub(crate) struct StepByStep {
    /// `None` before the first observation.
    expression: Option<Expression>,
    /// The last result.
    value: i64,
    n_results: usize,
    n_calls: usize,
}

impl StepByStep {
    fn read(&mut self, observation: &Observation) {
        let Some(message) = observation.messages.last() else { return };
        if message.role == Role::Tool {
            // An error is not a number; the player then repeats the call.
            if let Ok(value) = message.content.parse() {
                self.value = value;
                self.n_results += 1;
            }
        } else if let Some(expression) = read_opening(&message.content) {
            self.value = expression.first;
            self.expression = Some(expression);
        }
    }
}

impl Demonstrator for StepByStep {
    fn act(&mut self, observation: &Observation) -> Action {
        self.read(observation);
        let next = self.expression.as_ref().and_then(|known| known.steps.get(self.n_results));
        match next {
            Some(&(op, b)) => call(&mut self.n_calls, Call { a: self.value, op, b }),
            None => Action::text(self.value.to_string()),
        }
    }
}

/// The random player: it makes well-formed calls with random arguments, and sometimes answers with a random number.
#[derive(Debug)]
pub(crate) struct Anything {
    random: Random,
    n_calls: usize,
}

impl Anything {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), n_calls: 0 }
    }

    fn digit(&mut self) -> i64 {
        1 + self.random.below(9).cast_signed()
    }
}

impl Demonstrator for Anything {
    fn act(&mut self, _observation: &Observation) -> Action {
        if self.random.below(4) == 0 {
            return Action::text(self.random.below(100).to_string());
        }
        let op = Operation::ALL[self.random.below(3) as usize];
        let random = Call { a: self.digit(), op, b: self.digit() };
        call(&mut self.n_calls, random)
    }
}

/// Creates an action with one call, under an id that is new in the episode.
fn call(n_calls: &mut usize, call: Call) -> Action {
    let id = format!("call_{n_calls}");
    *n_calls += 1;
    let call = ToolCall { id, name: Calc::NAME.to_owned(), arguments: call.arguments() };
    Action { calls: vec![CallAttempt::Call(call)], ..Action::default() }
}
